"""Written by proto/generate.py; never edited."""
