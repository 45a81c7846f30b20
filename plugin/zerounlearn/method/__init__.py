"""ZeroUnlearn itself, free of any framework.

Reading order: `request`, `hparams`, `forget_set`, `contexts`, `passes`, `optimise`, `lineage`, `processes`,
`moment_files`, `statistics`, `unlearn`, `metrics`, `probes`, `report`.
"""
