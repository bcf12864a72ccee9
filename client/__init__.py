"""The client's Flower app."""
