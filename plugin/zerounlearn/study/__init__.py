"""Comparative studies: methods x data sets x forget-set sizes x seeds on one model, from one YAML file.

Reading order: `spec` (the file, checked), `methods` (hyperparameters by label, and applying a method so that it can
be undone), `material` (what a cell forgets, keeps and is asked), `measures` (the metrics), `cells` (identity, jobs and
records), `worker` (the model and the jobs it runs), `engines` (here, or on Ray's workers), `run` (the plan, what is
done already, the rest). What comes of the records is in `zerounlearn.report`.
"""
