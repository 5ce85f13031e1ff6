"""The one place that touches files: written whole or not at all, locked, with checksums."""
