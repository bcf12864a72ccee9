"""Every error fedpeft raises on purpose.

FedpeftError
├── InputError            what the caller can mend; exit code 2
│   ├── ConfigError       an experiment file or an override
│   ├── DataError         a data source or a partition
│   ├── ModelError        a base model that cannot be found or read safely
│   ├── UnsupportedError  two parts that do not go together
│   └── ResumeError       a run directory that cannot be continued
├── TensorMismatchError        two sets of tensors that should agree and do not
├── WireError             a message that is not what it claims to be
│   └── RefusedError      the same, with the code by which it is counted
├── PinError              what a server asks is not what this node's operator pinned
└── RunError              a run that failed after it began; exit code 1

A message names the value, the bound, the place and the remedy.
"""

from typing import Literal

__all__ = [
    "ConfigError",
    "DataError",
    "FedpeftError",
    "InputError",
    "ModelError",
    "PinError",
    "RefusalCode",
    "RefusedError",
    "ResumeError",
    "RunError",
    "TensorMismatchError",
    "UnsupportedError",
    "WireError",
]

RefusalCode = Literal[
    "late",
    "lost",
    "declined",
    "gave_up",
    "skipped",
    "size",
    "structure",
    "version",
    "signature",
    "job",
    "round",
    "fence",
    "base",
    "client",
    "duplicate",
    "manifest",
    "decode",
    "not_finite",
    "norm",
    "weight",
    "refused",
]
"""Why a client that was asked is not counted, in the order in which it is found out.

No reply (late, lost on the way, the client gave up, it was not asked); a reply that is too large, damaged, of another
format, not signed by its client, of another job, round or server, made from another adapter or base model, of another
client, a second one, of other tensors, not decodable, not finite, too long a step, of an impossible number of examples.
``refused`` stands where older records say no more.
"""


class FedpeftError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class InputError(FedpeftError, ValueError):
    """Something the caller can mend; nothing has been written."""

    exit_code = 2


class ConfigError(InputError):
    """An experiment file or an override that is not valid."""


class DataError(InputError):
    """Data that cannot be read, or cannot be dealt out as asked."""


class ModelError(InputError):
    """A base model that cannot be found, or cannot be read safely."""


class UnsupportedError(InputError):
    """Two parts that do not go together, with the reason."""


class ResumeError(InputError):
    """A run directory that cannot be continued."""


class TensorMismatchError(FedpeftError, ValueError):
    """Two sets of tensors differ in a name, a shape or a dtype."""


class WireError(FedpeftError, ValueError):
    """A message that is malformed, damaged, or meant for another run."""


class BehindError(WireError):
    """A client does not hold the adapter that the changes it was sent begin at; it is to be sent the whole one."""


class RefusedError(WireError):
    """A reply that is not used, with the one word by which such are counted: never one of the sender's own."""

    def __init__(self, code: RefusalCode, words: str) -> None:
        super().__init__(words)
        self.code = code


class PinError(FedpeftError):
    """What a server asks is not what this node's operator pinned; no data was read."""

    def __init__(self, pin: str, words: str) -> None:
        super().__init__(f"pin {pin}: {words}; nothing was read")
        self.pin = pin
        """Its name in the manifest: all of this that the server is told."""


class RunError(FedpeftError, RuntimeError):
    """A run that failed after it began; its checkpoint is intact."""
