"""Turns raw files into batches: bounded readers, parquet shards with a manifest, sampling. Every dataset is one file."""
