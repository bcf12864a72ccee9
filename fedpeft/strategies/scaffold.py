"""FedAvg whose clients correct their drift: each step is moved by what all clients' steps have that this one's lack.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning
(2020), arXiv 1910.06378, option II. With x received, y trained in T steps at rate eta, N clients of which S reply:

    y <- y - eta (g - c_k + c);  c_k' = c_k - c + (x - y) / (T eta);  x <- x + server_rate mean_S (y - x);
    c <- c + 1/N sum_S (c_k' - c_k)

The correction is the gradient of <c - c_k, y>, a penalty that looks at no data. It is right for plain SGD alone. Each
client keeps c_k, of the adapter's size; the server keeps c. Down travel x and c, up y - x and (c_k' - c_k) / N: twice
the floats of fedavg each way, 2 r (d_out + d_in) a pair. Under a lossy codec, and where a reply comes too late to
count, c is the mean of the c_k only nearly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedpeft.adapters.base import Slot
from fedpeft.config import Evaluate, Train
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.base import Beside, ClientUpdate, Parting, State, Strategy, Turn, WeightedSum
from fedpeft.strategies.weighting import accumulate_weighted, mean_delta, moved
from fedpeft.tensors import Tensors

__all__ = ["Options", "Scaffold", "make"]

_CONTROL = "control/"
"""Before a slot's name: its control variate, which is no slot."""


@final
class Options(Frozen):
    """Options of SCAFFOLD."""

    server_rate: float = Field(default=1.0, gt=0)
    """Step length on the mean of the changes."""


@final
@dataclass(frozen=True, kw_only=True)
class Scaffold(Strategy[WeightedSum]):
    """Averaging with control variates. Clients count alike, as the sum of the variates has it."""

    options: Options

    def check_settings(self, *, train: Train, evaluate: Evaluate) -> None:
        """Refuse all but plain SGD: (x - y) / (T eta) is a mean gradient under no other rule.

        Raises:
            UnsupportedError: names the setting and what it must be.
        """
        wanted = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "max_grad_norm": None}
        for name, value in wanted.items():
            if (got := getattr(train, name)) != value:
                remedy = "leave it out" if value in (0.0, None) else f"set it to {value!r}"
                raise UnsupportedError(
                    f"strategy 'scaffold' needs plain SGD, and train.{name} = {got!r}; {remedy}, or use fedavg"
                )

    def remembers(self) -> bool:
        """Each client keeps its control variate."""
        return True

    def takes_feedback(self) -> bool:
        """Both the change and that of the control variate are summed."""
        return True

    def init(self, slots: Sequence[Slot], adapter: Tensors) -> State:
        """Start with no correction: c = 0, and c_k = 0 until client k has trained."""
        return State(adapter=adapter, memory=_named(adapter.zeros()))

    def beside(self, slots: Sequence[Slot]) -> Beside:
        """A control variate for each slot, both ways."""
        control = tuple(replace(slot.spec, name=_CONTROL + slot.name) for slot in slots if slot.travels)
        return Beside(down=control, up=control)

    def broadcast(self, slots: Sequence[Slot], state: State) -> Tensors:
        """Send c."""
        return state.memory

    def penalty(self, parameters: Mapping[str, Tensor], turn: Turn) -> Tensor | None:
        """Return <c - c_k, y>, whose gradient c - c_k corrects every step."""
        gap = turn.beside - _own(turn)
        terms = [(gap[_CONTROL + name].to(value.device) * value).sum() for name, value in parameters.items()]
        return torch.stack(terms).sum()

    def finish(self, turn: Turn, trained: Tensors, *, num_steps: int) -> Parting:
        """Return c_k' to keep and (c_k' - c_k) / N to send, worked out in float64."""
        change = _named(turn.received.to(torch.float64) - trained.to(torch.float64))
        mean_step = change * (1.0 / (num_steps * turn.learning_rate))
        gained = mean_step - turn.beside.to(torch.float64)
        kept = (_own(turn).to(torch.float64) + gained).to(torch.float32)
        return Parting(adapter=trained, beside=(gained * (1.0 / turn.num_clients)).to(torch.float32), memory=kept)

    def start(self) -> WeightedSum:
        """Return an empty sum."""
        return WeightedSum()

    def accumulate(self, total: WeightedSum, update: ClientUpdate) -> WeightedSum:
        """Add the change of the adapter and that of the control variate."""
        both = replace(update, delta=update.delta.joined(update.beside))
        return accumulate_weighted(total, both, weighting="uniform")

    def apply(self, slots: Sequence[Slot], state: State, total: WeightedSum) -> State:
        """Move x by the mean and c by the sum, whose terms the clients have divided by N."""
        mean = mean_delta(total)
        step = mean.without(state.memory) * self.options.server_rate
        gained = mean.select(state.memory) * total.num_updates
        return State(adapter=moved(state.adapter, step), memory=moved(state.memory, gained))


def make(options: Options) -> Scaffold:
    """Return SCAFFOLD."""
    return Scaffold(options=options)


def _named(tensors: Tensors) -> Tensors:
    """Return the tensors under the names of their control variates."""
    return Tensors((_CONTROL + name, tensor) for name, tensor in tensors.items())


def _own(turn: Turn) -> Tensors:
    """Return c_k: zero before this client has trained."""
    return turn.memory.require(turn.beside.manifest(), where="memory") if turn.memory else turn.beside.zeros()
