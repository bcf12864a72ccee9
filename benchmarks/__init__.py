"""Evidence too slow for tests: one command each, JSON out, a table in docs/results.md."""
