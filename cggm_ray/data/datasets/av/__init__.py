"""Sets of sound and pictures: clips that lists or folders name, decoded once in tasks."""
