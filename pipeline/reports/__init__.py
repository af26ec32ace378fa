"""What a reader sees: tables, plots, the comparison of runs."""
