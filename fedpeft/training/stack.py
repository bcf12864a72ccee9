"""One model with the adapters of several clients at once: what is frozen sees all their rows, what trains is apart.

A group of G clients with b rows each makes a batch of G b rows. Frozen layers see one batch. A layer that holds a
stacked parameter (G, *shape) is given its input as (G, b, ...) and applies to each client's rows that client's own
values: ``nn.Linear`` by a batched product, any other layer by torch.func's vmap over that layer alone.

Rows of different clients meet nowhere, so that the gradient of a sum of the clients' losses is each client's own. With
groups of one row the same gives gradients of single examples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import linear

from fedpeft.errors import UnsupportedError

__all__ = ["Stack"]

Own = dict[str, Tensor]
"""Name of a parameter in its layer -> (G, *shape)."""
_PARAMETRIZED = "parametrizations"
_NEVER_CALLED = (nn.ParameterDict, nn.ParameterList, nn.ModuleDict, nn.ModuleList)


@final
@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer that is called on the batch, and those of its parameters that are stacked."""

    path: str
    module: nn.Module
    names: dict[str, nn.Parameter]


@final
class Stack:
    """Which of a model's parameters are stacked, and with what; ``values`` and ``groups`` may change between passes."""

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        """Find the layers that hold these parameters.

        Raises:
            UnsupportedError: one of them is not the model's.
        """
        wanted = {id(parameter): parameter for parameter in parameters}
        self._layers = tuple(_layers(model, wanted))
        self.values: Mapping[nn.Parameter, Tensor] = {}
        """Parameter -> (G, *shape)."""
        self.groups = 1
        """G."""
        self.rows = 0
        """G b, of the batch under way."""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the layers use the stacked values inside the block."""
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(vars(layer.module).pop, "forward", None)
                vars(layer.module)["forward"] = self._instead(layer, layer.module.forward)
            yield

    def _instead(self, layer: _Layer, original: Callable[..., Any]) -> Callable[..., Any]:
        apply = _product if type(layer.module) is nn.Linear else _mapped(layer.module, original)

        def forward(*inputs: Any, **named: Any) -> Tensor:
            rows = self._required(layer, inputs, named)
            own = {name: self.values[parameter] for name, parameter in layer.names.items()}
            return apply(layer.module, own, rows.reshape(self.groups, -1, *rows.shape[1:])).flatten(0, 1)

        return forward

    def _required(self, layer: _Layer, inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        if len(inputs) == 1 and not named and isinstance(inputs[0], Tensor) and len(inputs[0]) == self.rows:
            return inputs[0]
        shapes = ", ".join(str(tuple(each.shape)) if isinstance(each, Tensor) else str(each) for each in inputs)
        raise UnsupportedError(
            f"{layer.path!r} ({type(layer.module).__name__}) trains and is not called with one tensor whose rows are "
            f"the batch's {self.rows}, but with ({shapes})"
        )


def _layers(model: nn.Module, wanted: dict[int, nn.Parameter]) -> Iterator[_Layer]:
    modules, found = dict(model.named_modules()), set()
    for path, names in _by_layer(model, wanted, modules).items():
        found |= {id(parameter) for parameter in names.values()}
        yield _Layer(path=path, module=modules[path], names=names)
    if missing := wanted.keys() - found:
        raise UnsupportedError(f"{len(missing)} of {len(wanted)} trained parameters are not the model's own")


def _by_layer(
    model: nn.Module, wanted: dict[int, nn.Parameter], modules: Mapping[str, nn.Module]
) -> dict[str, dict[str, nn.Parameter]]:
    """Return path of a layer that is called -> name in it -> parameter."""
    found: dict[str, dict[str, nn.Parameter]] = {}
    for whole, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in wanted:
            path = _called(whole, modules)
            found.setdefault(path, {})[whole[len(path) + 1 if path else 0 :]] = parameter
    return found


def _called(name: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the path of the innermost module that is called on the batch and holds this parameter."""
    before, inside, _ = name.partition(f".{_PARAMETRIZED}.")
    path = before if inside else name.rpartition(".")[0]
    while isinstance(modules[path], _NEVER_CALLED):
        path = path.rpartition(".")[0]
    return path


def _product(layer: nn.Module, own: Own, inputs: Tensor) -> Tensor:
    """Map (G, b, ..., d_in) to (G, b, ..., d_out) by weights (G, d_out, d_in) and biases (G, d_out), or shared ones."""
    weight, bias = own.get("weight"), own.get("bias", layer.bias)
    if weight is None:
        outputs = linear(inputs, layer.get_parameter("weight"))
    else:
        rows = torch.bmm(inputs.flatten(1, -2), weight.transpose(1, 2))
        outputs = rows.reshape(*inputs.shape[:-1], -1)
    if not isinstance(bias, Tensor):
        return outputs
    if "bias" in own:
        bias = bias.reshape(len(bias), *[1] * (inputs.dim() - 2), -1)
    return outputs + bias.to(outputs.dtype)


def _mapped(layer: nn.Module, original: Callable[..., Any]) -> Callable[[nn.Module, Own, Tensor], Tensor]:
    """Return what applies any layer to each group with the group's own values."""
    whole = _Whole(layer, original)

    def apply(_: nn.Module, own: Own, inputs: Tensor) -> Tensor:
        def alone(values: Own, rows: Tensor) -> Tensor:
            outputs: Tensor = functional_call(
                whole, {f"layer.{name}": value for name, value in values.items()}, (rows,)
            )
            return outputs

        outputs: Tensor = vmap(alone, randomness="different")(own, inputs)
        return outputs

    return apply


class _Whole(nn.Module):
    """A layer whose own forward is another by now."""

    def __init__(self, layer: nn.Module, original: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = layer
        self._original = original

    def forward(self, inputs: Tensor) -> Any:
        """Do what the layer does."""
        return self._original(inputs)
