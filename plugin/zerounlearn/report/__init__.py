"""What runs and studies show: tables, plots, the page, and the statistics behind them."""
