"""ZeroUnlearn itself, free of any framework.

Reading order: `request`, `hparams`, `contexts`, `optimise`, `corpus`, `statistics`, `unlearn`, `metrics`,
`report`.
"""
