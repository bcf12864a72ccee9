"""How large a ternary vector's entries arrive, and when that is too large for error feedback."""

from statistics import NormalDist
from typing import Literal, Self

from pydantic import Field, model_validator

from fedpeft.codecs.classes import Sparsity

__all__ = ["Scaling", "largest_alpha"]


class Scaling(Sparsity):
    """How much is kept, and how large it arrives."""

    scale: Literal["mean_abs", "std", "dp_norm"] = "mean_abs"
    """What each kept entry's magnitude becomes."""
    alpha: float | None = Field(default=None, gt=0)
    """Of std, and of nothing else: times the standard deviation; 1 when unset."""
    norm: float | None = Field(default=None, gt=0)
    """Of dp_norm, and of nothing else: the L2 norm of what arrives."""

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        if self.alpha is not None and self.scale != "std":
            raise ValueError(f"alpha has no effect with scale = {self.scale!r}; leave it out, or set scale = 'std'")
        if (self.norm is None) == (self.scale == "dp_norm"):
            raise ValueError("norm belongs to scale = 'dp_norm': give both or neither")
        return self

    def grows(self) -> str | None:
        """Return why fed-back errors would grow: what arrives is too far beyond what was sent."""
        if self.scale == "dp_norm":
            return "scale = 'dp_norm' has one norm, however much is owed; use mean_abs"
        limit = min((largest_alpha(share) for share in (self.density, *self.densities.values()) if share), default=0.0)
        if self.scale == "std" and (self.alpha or 1.0) >= limit > 0:
            return (
                f"alpha = {self.alpha or 1.0} * std is more than twice what is best (normal entries: below {limit:.2f} "
                "at this density); lower alpha or use mean_abs"
            )
        return super().grows()


def largest_alpha(density: float) -> float:
    """Return the alpha at which the error of normal entries is as large as they are: 4 phi(t) / k, kept beyond t.

    The squared error of what arrives as alpha * std is 1 - 4 alpha phi(t) + alpha^2 k of the entries' own.
    """
    normal = NormalDist()
    return 4 * normal.pdf(normal.inv_cdf(1 - density / 2)) / density
