"""The resident trainer: it keeps model, data and memory between messages, each of which Flower gives a new process."""
