"""The identity of a frozen base, to the bit: what server and clients compare before the first round."""

from torch import nn

from fedpeft.tensors import Tensors

__all__ = ["base_hash"]


def base_hash(model: nn.Module, *, exclude: tuple[str, ...]) -> str:
    """Return the sha256 (hex) over names, shapes, dtypes and bits of the model's saved state.

    The modules named in exclude (a fresh head) are left out, and so are buffers that are computed rather than saved:
    their last bit may differ between processors.
    """
    kept = [(name, tensor) for name, tensor in model.state_dict().items() if not _within(name, exclude)]
    return Tensors(sorted(kept, key=lambda item: item[0])).digest()


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
