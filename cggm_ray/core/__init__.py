"""What every room may use: batches, errors, seeds, registries, sums over workers."""
