"""Gradients of single examples layer by layer, by Opacus's rules for each kind of layer.

A rule takes what went into a layer and the gradient of what came out. Opacus's own module also demands that the model
be in training mode, adds to each parameter's ``grad`` and leaves attributes on parameters; here the rules alone are
used, so that nothing of the model is changed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fedpeft.errors import UnsupportedError

__all__ = ["hooked"]

Collected = dict[nn.Parameter, Tensor]
PREPARED = "ft_compute_sample_grad"
"""Where Opacus keeps its rule for a layer that has none of its kind."""


@contextmanager
def hooked(model: nn.Module) -> Iterator[Collected]:
    """Gather inside the block, while autograd goes backward, parameter -> (batch, *shape), summed over uses.

    Only layers that train are touched, and no hook or attribute is left on them after.

    Raises:
        UnsupportedError: a layer that trains holds a buffer, or is not called with one tensor to give one.
    """
    collected: Collected = {}
    with ExitStack() as stack:
        for name, layer in list(_layers(model)):
            if type(layer) not in _rules():
                _prepare(name, layer)
                stack.callback(layer.__dict__.pop, PREPARED, None)
            stack.callback(layer.register_forward_hook(_capture(name, collected)).remove)
        yield collected


def _rules() -> dict[type[nn.Module], Any]:
    """Return Opacus's rules by kind of layer; it takes seconds to import, and no run without privacy waits for it."""
    from opacus.grad_sample import GradSampleModule

    rules: dict[type[nn.Module], Any] = GradSampleModule.GRAD_SAMPLERS
    return rules


def _layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield what trains; a module with parameters of its own and no rule for its kind is taken whole."""
    trains = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    if trains:
        yield path, module
    if not trains or type(module) in _rules():
        for name, child in module.named_children():
            yield from _layers(child, f"{path}.{name}" if path else name)


def _prepare(path: str, layer: nn.Module) -> None:
    from opacus.grad_sample.functorch import prepare_layer

    try:
        prepare_layer(layer)
    except NotImplementedError as error:
        raise UnsupportedError(
            f"gradients of single examples by hooks: {path!r} ({type(layer).__name__}) trains and Opacus has no rule "
            f"for it: {error}; keep frozen tensors in a module beside it, or declare by='vmap'"
        ) from error


def _capture(path: str, collected: Collected) -> Any:
    def forward_hook(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise UnsupportedError(
                f"gradients of single examples by hooks: {path!r} ({type(layer).__name__}) trains and is not called "
                "with one positional tensor to give one tensor; call it so, or declare by='vmap'"
            )
        if output.requires_grad:
            activations = [inputs[0].detach()]
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda backward: _gather(layer, activations, backward.detach(), collected)
            )

    return forward_hook


def _gather(layer: nn.Module, activations: list[Tensor], backward: Tensor, collected: Collected) -> None:
    from opacus.grad_sample.functorch import ft_compute_per_sample_gradient

    rule = _rules().get(type(layer), ft_compute_per_sample_gradient)
    for parameter, gradients in rule(layer, activations, backward).items():
        if parameter.requires_grad:
            before = collected.get(parameter)
            collected[parameter] = gradients if before is None else before + gradients
