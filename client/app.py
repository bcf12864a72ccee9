"""The Flower ClientApp of ``flwr run``; all of it is in the installed library."""

from pathlib import Path

from fedpeft.engines.apps import flower_client_app

__all__ = ["app"]

app = flower_client_app(Path(__file__).resolve().parents[1] / "simulations")
