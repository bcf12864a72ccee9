"""What a server is told of an error on a client: a code, the kind of error and a number, never its words.

Words may hold paths, configuration, or data; they stay in the client's own log, where the number finds them. In a
simulation everything is on one machine and one user's, and ``tells`` has the words sent too.
"""

import logging
import os
import secrets

from flwr.app import Error

from fedpeft.errors import (
    BehindError,
    ConfigError,
    DataError,
    InputError,
    ModelError,
    PinError,
    ResumeError,
    RunError,
    TensorMismatchError,
    UnsupportedError,
    WireError,
)
from fedpeft.wire.record import BEHIND, DECLINED, GAVE_UP

__all__ = ["WORDS_VARIABLE", "failure", "tells"]

WORDS_VARIABLE = "FEDPEFT_ERROR_WORDS"
"""Environment variable of a node's process: ``tell`` sends an error's words to the server."""
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (ConfigError, "config"),
    (DataError, "data"),
    (ModelError, "model"),
    (UnsupportedError, "unsupported"),
    (ResumeError, "state"),
    (InputError, "input"),
    (WireError, "message"),
    (TensorMismatchError, "tensors"),
    (RunError, "run"),
    (MemoryError, "memory"),
    (OSError, "system"),
)
"""Most special first."""


def tells() -> bool:
    """Tell whether this process's operator has errors' words sent."""
    return os.environ.get(WORDS_VARIABLE) == "tell"


def failure(error: Exception, log: logging.Logger, *, who: str, words: bool, hidden: bool = False) -> Error:
    """Log an error under a number and return what the server is told of it.

    ``words`` has it told in full; ``hidden`` has not even its kind told, which under privacy may depend on data.
    """
    number = secrets.token_hex(6)
    log.warning("%s gave up (id %s)", who, number, exc_info=error)
    if isinstance(error, PinError):
        return Error(DECLINED, f"declined: pin {error.pin} (id {number})")
    flower = BEHIND if isinstance(error, BehindError) else GAVE_UP
    if hidden:
        return Error(flower, f"gave up; with [privacy] the reason stays in the client's own log (id {number})")
    if words:
        return Error(flower, f"{type(error).__name__}: {error}")
    return Error(flower, f"gave up: {_code(error)}, {type(error).__name__} (id {number})")


def _code(error: Exception) -> str:
    return next((code for kind, code in _CODES if isinstance(error, kind)), "unexpected")
