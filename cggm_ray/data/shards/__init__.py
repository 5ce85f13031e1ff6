"""The stored form of a dataset: parquet files and a manifest."""
