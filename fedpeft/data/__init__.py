"""Data: sources, partitions, encoded examples."""
