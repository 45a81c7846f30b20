"""Comparative studies: methods x data sets x forget-set sizes x seeds on one model, from one YAML file.

Reading order: `spec` (the file, checked), `methods` (hyperparameters by label, and applying a method so that it can
be undone), `framework_methods` (EasyEdit's own), `material` (what a cell forgets, keeps and is asked), `measures`
(the metrics), `weights` (fingerprints), `peak` (memory), `cell` (identity and record of a cell), `bench` (the model and
the jobs it runs), `engines` (here, or on Ray's workers), `run` (the plan, what is done already, the rest);
then, from the records alone, `columns` (what a metric is called and which way is better), `frame`, `significance`,
`table`, `marks`, `summary`, `markup` (Markdown, LaTeX), `canvas`, `trade_off` and `breakdown` (plots), `settings`,
`page` (the report) and `outputs` (all files).
"""
