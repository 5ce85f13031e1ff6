"""Ray Train: the run and its group of workers."""
