"""The field's metrics of unlearning, each under its own name and with its source.

The model's pass is apart from the arithmetic: `answers` runs the model and gives log-probabilities token by token,
`generation` gives greedy text; every other module computes from numbers and texts alone. What a metric means for
unlearning, and which direction is better, stands in its docstring.

Reading order: `answers`, `memorisation` (probability, exact memorisation, extraction strength), `truth` (truth
ratio, forget quality, model utility), `membership` (inference attacks), `generation`, `rouge`, `fluency`,
`questions` and `tofu` (TOFU's numbers of a question, both passes included), `harness` (standard tasks of
lm-evaluation-harness). The libraries they use are those of the `study` extra.
"""
