"""The field's gradient methods.

Reading order: `objectives` (one formula a function), `config`, `sequences`, `terms`, `descend`.
"""
