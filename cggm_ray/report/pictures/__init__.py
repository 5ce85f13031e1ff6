"""Pictures of a dataset's test cases: one file for each dataset that has any."""
