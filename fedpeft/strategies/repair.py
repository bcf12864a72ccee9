"""Corrections DB of an averaged factor B that bring (B + DB) A nearer to a wanted product DW, A being fixed.

Both work in the r columns that A can reach: of DW they ask only DW A^T, of shape (d_out, r), and its norm. All tensors
are float64.
"""

import torch
from torch import Tensor

__all__ = ["cosine", "ridge"]

_EPSILON = torch.finfo(torch.float64).eps


def ridge(missing: Tensor, gram: Tensor, *, penalty: float) -> Tensor:
    """Return the DB of the smallest ||R - DB A||_F^2 + penalty ||DB||_F^2: R A^T (A A^T + penalty I)^-1.

    ``missing`` is R A^T, shape (d_out, r), with R = DW - B A; ``gram`` is A A^T, shape (r, r). Where the system is
    singular, which takes a penalty of zero, DB is the smallest of the solutions.
    """
    values, vectors = torch.linalg.eigh(gram)
    damped = values.clamp(min=0.0) + penalty
    usable = damped > len(values) * _EPSILON * damped[-1]
    inverse = torch.where(usable, 1.0 / torch.where(usable, damped, torch.ones_like(damped)), torch.zeros_like(damped))
    found: Tensor = (missing @ vectors) * inverse @ vectors.T
    return found


def cosine(
    b: Tensor, wanted: Tensor, gram: Tensor, *, norm: float, penalty: float, num_steps: int, step_size: float
) -> Tensor:
    """Return the DB that gradient descent from zero finds for 1 - cos(DW, (B + DB) A) + penalty ||DB||_F^2.

    ``b`` is B and ``wanted`` DW A^T, both of shape (d_out, r); ``gram`` is A A^T; ``norm`` is ||DW||_F > 0; B A must
    not be zero. A step that would raise the objective is not taken and the step size is halved, so that the cosine
    never ends below where it began.
    """
    objective = _Objective(b, wanted, gram, norm=norm, penalty=penalty)
    return _descend(objective, b, num_steps=num_steps, step_size=step_size) - b


class _Objective:
    """The objective and its gradient at a B of shape (d_out, r)."""

    def __init__(self, start: Tensor, wanted: Tensor, gram: Tensor, *, norm: float, penalty: float) -> None:
        self.start, self.wanted, self.gram = start, wanted, gram
        self.norm, self.penalty = norm, penalty

    def at(self, b: Tensor) -> tuple[float, Tensor]:
        """Return value and gradient; the value of a zero product, which has no direction, is infinite."""
        turned, change = b @ self.gram, b - self.start
        length = float((b * turned).sum().clamp(min=0.0).sqrt())
        if length == 0.0:
            return float("inf"), torch.zeros_like(b)
        dot, both = float((b * self.wanted).sum()), self.norm * length
        value = 1.0 - dot / both + self.penalty * float(change.square().sum())
        gradient = turned * (dot / (both * length**2)) - self.wanted / both + change * (2.0 * self.penalty)
        return value, gradient


def _descend(objective: _Objective, b: Tensor, *, num_steps: int, step_size: float) -> Tensor:
    value, gradient = objective.at(b)
    for _ in range(num_steps):
        candidate = b - gradient * step_size
        lower, next_gradient = objective.at(candidate)
        if lower <= value:
            b, value, gradient = candidate, lower, next_gradient
        else:
            step_size /= 2
    return b
