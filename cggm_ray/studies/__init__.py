"""Studies: many runs under one folder, searches over hyper-parameters and comparisons over strategies and seeds."""
