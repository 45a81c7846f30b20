"""ZeroUnlearn itself, free of any framework.

Reading order: `request`, `hparams`, `forget_set`, `contexts`, `optimise`, `lineage`, `statistics`, `unlearn`,
`metrics`, `report`.
"""
