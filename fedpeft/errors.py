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
└── RunError              a run that failed after it began; exit code 1

A message names the value, the bound, the place and the remedy.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "FedpeftError",
    "InputError",
    "ModelError",
    "ResumeError",
    "RunError",
    "TensorMismatchError",
    "UnsupportedError",
    "WireError",
]


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


class RunError(FedpeftError, RuntimeError):
    """A run that failed after it began; its checkpoint is intact."""
