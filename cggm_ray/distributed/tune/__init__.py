"""Ray Tune: studies of many trials."""
