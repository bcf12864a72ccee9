"""The round: cohort sampling, collection, checkpoints."""
