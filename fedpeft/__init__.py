"""Federated parameter-efficient fine-tuning: adapters trained where the data is, aggregated by a Flower server."""

__version__ = "0.1.0"

__all__ = ["__version__"]
