"""Error feedback: what a lossy codec leaves out of one body is added to the next, so that nothing is lost, only late.

Karimireddy, Rebjock, Stich, Jaggi (2019), arXiv 1901.09847. With a change d, a memory e that begins at 0 and a codec C:

    x_t = d_t + e_t;  C(x_t) is sent;  e_{t+1} = x_t - C(x_t);  so sum_t C(x_t) = sum_t d_t - e_T.

Up, d is the change a client has trained; e stays with the client, float32 of the slots' full shapes. A tensor that is
not sent in a round keeps its e, and so do the ranks of a pair that are not: each factor, each rank has its own. Down,
d is what a round has changed of the adapter; the server keeps x beside C(x), which is the adapter from then on.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedpeft.adapters.base import Adapter, Slot
from fedpeft.codecs.base import Codec, Common
from fedpeft.config import Experiment
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.base import Directive, State, Strategy
from fedpeft.strategies.ranks import padded, sliced
from fedpeft.tensors import Tensors

__all__ = ["joined_memory", "owed", "own", "require_feedback", "send", "settled"]

_PREFIX = "feedback/"
"""Before a tensor's name in what a client keeps; no strategy's own memory is named so."""


def require_feedback(
    experiment: Experiment, strategy: Strategy[Any], adapter: Adapter, *, up: Codec, down: Codec
) -> None:
    """Refuse error feedback where what is added later would not be what was left out.

    Raises:
        UnsupportedError: names the setting, why, and the remedy.
    """
    for side, codec, wanted in (("up", up, experiment.feedback.up), ("down", down, experiment.feedback.down)):
        if not wanted:
            continue
        if not strategy.takes_feedback():
            raise UnsupportedError(
                f"feedback.{side} = true and strategy {experiment.strategy.name!r} do not go together: the next "
                "adapter is not the last one plus a mean of changes, so what is sent later is not what was left out; "
                "leave it out, or use a strategy that averages changes, such as fedavg"
            )
        if (reason := codec.grows()) is not None:
            raise UnsupportedError(f"feedback.{side} = true lets the errors of codec {codec.name} grow: {reason}")
    if experiment.feedback.down and type(adapter).retract is not Adapter.retract:
        raise UnsupportedError(
            f"feedback.down = true and adapter {experiment.adapter.name!r} do not go together: its parameters are "
            "brought back to where they live after each round, and a packed adapter is not there; leave it out"
        )


def owed(memory: Tensors) -> Tensors:
    """Return tensor -> what was left out of it, of all that a client has kept."""
    return Tensors((name.removeprefix(_PREFIX), value) for name, value in memory.items() if name.startswith(_PREFIX))


def own(memory: Tensors) -> Tensors:
    """Return the strategy's own part of all that a client has kept."""
    return memory.without([name for name in memory if name.startswith(_PREFIX)])


def joined_memory(memory: Tensors, errors: Tensors) -> Tensors:
    """Return all that a client keeps: its strategy's memory, then what is owed."""
    return memory.joined(Tensors((_PREFIX + name, value) for name, value in errors.items()))


def send(
    codec: Codec, common: Common, change: Tensors, errors: Tensors, slots: Sequence[Slot], directive: Directive
) -> tuple[bytes, Tensors]:
    """Pack a change with what is owed of its tensors and ranks; return the body and what is owed from now on.

    ``change`` is cut to the directive's ranks; ``errors`` are of full shape, before and after.

    Raises:
        TensorMismatchError: a number is not finite, or what is owed is of another shape.
    """
    ranks: dict[str, Any] = {"rank": directive.rank, "held": directive.held}
    due = sliced(errors.select(set(errors) & set(change)), slots, **ranks)
    whole = change + change.zeros().replace(due)
    body = codec.encode(whole, common)
    left = (whole - codec.decode(body, whole.manifest(), common)).require_finite(where="what the codec leaves out")
    paid, fresh = padded(due, slots, **ranks), padded(left, slots, **ranks)
    after = {name: value if name not in paid else errors[name] - paid[name] + value for name, value in fresh.items()}
    return body, Tensors({**errors, **after})


def settled(codec: Codec, common: Common, names: Sequence[str], before: State, after: State) -> State:
    """Return the state after a round whose adapter is what all clients will decode of it.

    ``after.adapter`` has the round's change on top of what was decoded before; what that lacked is added, and the sum
    is kept beside what decodes from it. ``names`` are the tensors that go down; others are as they are.
    """
    exact = after.adapter
    if before.exact:
        exact = exact + (before.exact - before.adapter)
    sent = exact.select(names)
    decoded = codec.received(sent, common)
    return replace(after, adapter=exact.replace(decoded), exact=exact)
