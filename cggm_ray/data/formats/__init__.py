"""Bounded readers of files that nobody vouches for."""
