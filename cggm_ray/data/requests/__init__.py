"""Samples that a request to a service brings: what they look like, and how they become batches."""
