"""Version 1 of the headers; written by proto/generate.py, never edited."""
