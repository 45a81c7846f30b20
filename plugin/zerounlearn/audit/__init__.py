"""Does the model still know? Attacks on an unlearned model, with controls that never knew, and what they brought back.

Reading order: registry (what an attack is), target (what it is given), controls, pair (two checkpoints in one model),
results (shares, intervals, the excess over the controls), run, certificate, page. The attacks are in `attacks`, one a
file.
"""
