"""From shards to batches, in the order of seed and epoch."""
