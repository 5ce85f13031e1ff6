"""Reads and writes files: complete or not at all, with locks and checksums."""
