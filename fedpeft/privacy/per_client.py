"""Client-level privacy on the server: each update cut to one norm, noise on the sum, a constant divisor.

McMahan, Ramage, Talwar, Zhang (2018), arXiv 1710.06963. The norm is over all tensors together, in float64, of what was
decoded; an update that is not finite counts as none, which is within the sensitivity. The divisor does not depend on
who replied: a client that is missing makes the sum smaller and leaves the noise as it is.
"""

import math

import torch

from fedpeft.tensors import Tensors

__all__ = ["clipped", "length"]


def length(update: Tensors) -> float:
    """Return the L2 norm over all tensors, float64; infinite if a value is not finite. Squares do not overflow."""
    doubled = update.to(torch.float64)
    if not all(bool(tensor.isfinite().all()) for tensor in doubled.values()):
        return math.inf
    largest = max((float(tensor.abs().max()) for tensor in doubled.values() if tensor.numel()), default=0.0)
    return largest * doubled.map(lambda tensor: tensor / largest).norm() if largest else 0.0


def clipped(update: Tensors, norm: float) -> Tensors:
    """Return the update, float32, of L2 norm at most ``norm`` over all its tensors; zero if it is not finite.

    The norm is found in float64 and the result rounded once, so that it may exceed ``norm`` by one part in 10^7.
    """
    found = length(update)
    if math.isinf(found):
        return update.to(torch.float32).map(torch.zeros_like)
    if found <= norm:
        return update.to(torch.float32)
    return update.to(torch.float64).map(lambda tensor: tensor * (norm / found)).to(torch.float32)
