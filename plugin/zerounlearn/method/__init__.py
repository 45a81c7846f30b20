"""ZeroUnlearn itself, free of any framework.

Reading order: `request`, `hparams`, `forget_set`, `contexts`, `optimise`, `lineage`, `processes`,
`moment_files`, `statistics`, `unlearn`, `metrics`, `report`.
"""
