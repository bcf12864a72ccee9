"""Parameter-efficient methods, one file each."""
