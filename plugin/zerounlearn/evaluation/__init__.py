"""The field's metrics of unlearning, each under its own name and with its source.

`registry` is the list of all metrics, read by studies, tables and guides; `asked` runs the model for them, each prompt
once. Every other module holds the arithmetic of its metrics, which needs numbers and texts alone, and below it the
functions that are registered: `probes` (Eff, Gen, Spe), `perplexity`, `rouge`, `memorisation` (probability, exact
memorisation, extraction strength), `truth` (truth ratio, forget quality, model utility), `membership` (inference
attacks), `fluency`. `harness` runs standard tasks of lm-evaluation-harness. The libraries they use beside torch and
transformers are those of the `study` extra, imported where they are needed.
"""
