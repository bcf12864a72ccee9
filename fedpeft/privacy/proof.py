"""Whether gradients of single examples are what they should be, tried on a model before it trains with privacy.

A gradient that mixes examples is clipped as if it were one example's: no error is raised, and the stated epsilon is
void. So nothing is taken on trust; the declared way is held against the loop on a few examples.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedpeft.adapters.base import GradientSupport
from fedpeft.errors import UnsupportedError
from fedpeft.privacy.per_sample import Batch, Gradients, Losses, by_loop, num_examples, way
from fedpeft.seeds import generator

__all__ = ["TOLERANCE", "prove", "refuse_mixing"]

TOLERANCE = 1e-5
"""Of the largest gradient in the batch, which float32 keeps with room to spare."""
OWN_TOLERANCE = 1e-3
"""Of the largest gradient of the same tensor: a small tensor's own gradients are tried as much as a large one's."""
ROUNDING = 1e-7
"""Of the largest gradient in the batch: below it a tensor's gradients are what float32 leaves of larger sums."""
NUDGE = 0.02
"""Standard deviation of what is added to the parameters: where a factor starts at zero, its partner has no gradient."""
REMEDIES = {
    "hooks": "declare by='vmap' in the adapter's gradients()",
    "vmap": "declare by='refused' in the adapter's gradients(), or take privacy of whole clients",
}


def prove(model: nn.Module, support: GradientSupport, batch: Batch, losses: Losses) -> None:
    """Compare the declared way with the loop on a probe of at least two different examples.

    In eval mode, so that no dropout is drawn, and at parameters nudged off their start; both are restored to the bit.
    A refusal names numbers of the probe: let it be made up or public.

    Raises:
        UnsupportedError: the adapter refuses, a module mixes examples, the probe shows nothing, the way cannot be gone,
            or the first parameter whose gradients differ, by how much, and the remedy.
    """
    take = way(support)
    refuse_mixing(model)
    if num_examples(batch) < 2:
        raise UnsupportedError(f"proof of gradients: expected at least 2 examples, got {num_examples(batch)}")
    with _nudged(model), _eval(model):
        truth = by_loop(model, batch, losses)
        try:
            found = take(model, batch, losses)
        except UnsupportedError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UnsupportedError(
                f"gradients of single examples by {support.by} fail on this model: {said}; {REMEDIES[support.by]}"
            ) from error
    _compare(found, truth, support.by)


def refuse_mixing(model: nn.Module) -> None:
    """Refuse modules through which one example changes another's output or the model's state.

    Raises:
        UnsupportedError: the first such module, by name and type.
    """
    for name, module in model.named_modules():
        if _mixes(module):
            raise UnsupportedError(
                f"privacy of examples: {name!r} ({type(module).__name__}) mixes the examples of a batch, so that no "
                "gradient is one example's alone; use a model with LayerNorm or GroupNorm there"
            )


def _mixes(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    return isinstance(module, nn.modules.instancenorm._InstanceNorm) and bool(module.track_running_stats)


def _compare(found: Gradients, truth: Gradients, by: str) -> None:
    largest = max((float(value.abs().max()) for value in truth.values() if value.numel()), default=0.0)
    for name, expected in truth.items():
        got = found.get(name)
        if got is None or got.shape != expected.shape:
            shape = "none" if got is None else f"shape {tuple(got.shape)}"
            raise UnsupportedError(_differs(by, name, f"expected shape {tuple(expected.shape)}, got {shape}"))
        away, own = _distance(got, expected), _distance(expected, torch.zeros(()))
        allowed = min(TOLERANCE * largest, OWN_TOLERANCE * own + ROUNDING * largest)
        if not away <= allowed:
            how = f"away by {away:.1e}, allowed is {allowed:.1e}; its largest is {own:.1e}, of all {largest:.1e}"
            raise UnsupportedError(_differs(by, name, how))
    if largest == 0:
        raise UnsupportedError("proof of gradients: all are zero on this probe, which proves nothing; take another one")


def _distance(got: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference; not a number if one side is not, which no bound admits."""
    return float((got - expected).abs().max()) if expected.numel() else 0.0


def _differs(by: str, name: str, how: str) -> str:
    return f"gradients of single examples by {by} are wrong for {name!r}: {how}; {REMEDIES[by]}"


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _nudged(model: nn.Module) -> Iterator[None]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    with torch.no_grad():
        for name, parameter in trained.items():
            noise = NUDGE * torch.randn(parameter.shape, generator=generator(0, "proof", name))
            parameter.add_(noise.to(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(before[name])
