"""What the [compute] table asks of this machine and of a model, granted or refused."""

import torch
from torch import nn

from fedpeft.config import Compute
from fedpeft.errors import ConfigError, UnsupportedError

__all__ = ["recompute_blocks", "require_hardware"]


def require_hardware(compute: Compute) -> None:
    """Refuse what this machine does not have, before anything is loaded.

    Raises:
        ConfigError: the precision is not settled.
        UnsupportedError: the device is not there.
    """
    if compute.precision == "auto":
        raise ConfigError(
            "compute.precision = 'auto' is settled where `fedpeft simulate` begins; all parts of a federation must "
            "have the same, so write 'float32' or 'bfloat16' here"
        )
    if compute.device == "cpu":
        return
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not have:
        built = torch.version.cuda or "none"
        raise UnsupportedError(
            f"compute.device = {compute.device!r}: torch {torch.__version__} (built for CUDA {built}) finds no CUDA "
            "device; write 'cpu', or install a torch built for CUDA where there is one"
        )
    index = torch.device(compute.device).index or 0
    if index >= have:
        raise UnsupportedError(f"compute.device = {compute.device!r}: expected an index below {have}, the devices here")


def recompute_blocks(model: nn.Module) -> None:
    """Have each block of the model compute its activations again when it goes backward, instead of keeping them.

    Dropout draws the same both times; in eval mode nothing changes.

    Raises:
        UnsupportedError: the model's library does not offer that.
    """
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # newer first
    enable = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if enable is None or not getattr(model, "supports_gradient_checkpointing", False):
        raise UnsupportedError(
            f"compute.gradient_checkpointing: {type(model).__name__} cannot compute its blocks again; leave it out"
        )
    enable({"use_reentrant": False})
