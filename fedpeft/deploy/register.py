"""Tell a SuperLink which keys are admitted, and see who is there."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fedpeft.engines.operator import CONNECTION, Operator
from fedpeft.errors import InputError, RunError

__all__ = ["await_online", "register"]

_PAUSE_SECONDS = 1.0
_KNOWN = "already in use"
"""What flwr 1.39 says of a key that is admitted."""


def register(operator: Operator, keys: Sequence[Path]) -> None:
    """Admit clients by their public keys; one that is admitted stays so.

    Raises:
        InputError: a key is missing.
        RunError: the SuperLink refused one.
    """
    for key in keys:
        if not key.is_file():
            raise InputError(f"{key}: no public key there")
        try:
            operator.ask("supernode", "register", str(key), CONNECTION)
        except RunError as error:
            if _KNOWN not in str(error):
                raise


def await_online(
    operator: Operator, count: int, *, seconds: float, require_running: Callable[[], None] = lambda: None
) -> None:
    """Wait until so many clients are there.

    Raises:
        RunError: they are not, in time.
    """
    deadline, online = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        require_running()
        nodes = operator.ask("supernode", "list", CONNECTION)["nodes"]
        online = sum(node["status"] == "online" for node in nodes)
        if online >= count:
            return
        time.sleep(_PAUSE_SECONDS)
    raise RunError(f"{online} of {count} clients are online after {seconds:.0f} s; see the logs of the SuperNodes")
