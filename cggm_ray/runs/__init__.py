"""A run on disk: its folder, its result, and how it is read back."""
