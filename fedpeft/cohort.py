"""Clients of one round that share a process answer together: each receives and concludes alone, and they train as one.

What passes between client and server, its checks, codecs and memories, is each client's own and the same as alone; see
``client``. Only the steps between are taken side by side, where clients were asked for the same: other slots to train,
another scale or another residual on the frozen weights is another group.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from flwr.app import Context, Message

from fedpeft.client import Begun, Node, answer, begin, conclude, place
from fedpeft.training.cohort import train_cohort
from fedpeft.training.group import Member, Trained
from fedpeft.training.workbench import Workbench

__all__ = ["train_together"]

T = TypeVar("T")
Asked = tuple[Message, Context]


def train_together(asked: Sequence[Asked], bench: Workbench, node: Node) -> list[Message]:
    """Return each client's reply; whatever goes wrong with one is that client's failure alone, named to the server."""
    begun = [_tried(partial(begin, message, context, bench)) for message, context in asked]
    ended = _trained(bench, [each for each in begun if isinstance(each, Begun)])
    return [_concluded(one, each, ended, bench, node) for one, each in zip(asked, begun, strict=True)]


def _tried(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - raised again where the client's reply is made
        return error


def _trained(bench: Workbench, begun: Sequence[Begun]) -> dict[int, Trained | Exception]:
    """Return client -> what became of its training."""
    groups: dict[Any, list[Begun]] = {}
    for each in begun:
        asked = each.turn.directive
        groups.setdefault((asked.train, asked.scale, each.parts.digest()), []).append(each)
    ended: dict[int, Trained | Exception] = {}
    for group in groups.values():
        found = _tried(partial(_train, bench, group))
        several = [found] * len(group) if isinstance(found, Exception) else found
        ended |= {each.header.client: one for each, one in zip(group, several, strict=True)}
    return ended


def _train(bench: Workbench, group: Sequence[Begun]) -> list[Trained | Exception]:
    members = [
        Member(client=each.header.client, turn=each.turn, start=bench.strategy.begin(each.turn), examples=each.examples)
        for each in group
    ]
    place(bench, group[0].turn, group[0].parts)
    return list(train_cohort(bench, members))


def _concluded(
    one: Asked, begun: Begun | Exception, ended: dict[int, Trained | Exception], bench: Workbench, node: Node
) -> Message:
    def work() -> Any:
        if isinstance(begun, Exception):
            raise begun
        trained = ended[begun.header.client]
        if isinstance(trained, Exception):
            raise trained
        return conclude(one[1], bench, begun, trained.adapter, trained.outcome, shared_by=len(ended))

    return answer(*one, node, work)
