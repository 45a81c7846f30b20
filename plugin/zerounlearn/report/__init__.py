"""What runs and studies show: tables, plots, the page, and the statistics behind them.

Reading order: `run` (one run's report); of a study's cells `frame` (tidy tables), `columns`, `table`, `matched`
(sweeps), `significance`, `marks`, `summary` (all tables), `markup` (Markdown, LaTeX), `canvas`, `trade_off`,
`breakdown` (plots), `provenance`, `page` (the report) and `outputs` (all files).
"""
