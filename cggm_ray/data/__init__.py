"""From raw files to batches: safe readers, parquet shards with a manifest, sampling. One file a dataset."""
