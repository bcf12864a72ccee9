"""Messages that are to be answered together: what a group is follows from a round's clients and its size alone.

The label of a message's group says which group, and how many it has, so that whoever answers need not guess whether
more are to come, and the groups are the same however many processes answer.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import final

from flwr.app import Message

__all__ = ["Gathering", "grouped"]


def grouped(cohort: Iterable[int], size: int, round_number: int) -> Iterator[tuple[int, str]]:
    """Yield each client with the label of its group: so many clients, in order, the last group perhaps fewer."""
    clients, number = iter(cohort), 0
    while group := list(islice(clients, size)):
        label = str(round_number) if size == 1 else f"{round_number}/{number}/{len(group)}"
        yield from ((client, label) for client in group)
        number += 1


@final
class Gathering:
    """Holds messages back until all of their group are there."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Message]] = {}

    def add(self, message: Message) -> list[Message]:
        """Return the message's whole group once it is complete, in the order in which they came; else nothing."""
        label = message.metadata.group_id
        *_, size = label.split("/") if "/" in label else (label, "1")
        group = [*self._waiting.pop(label, []), message] if size != "1" else [message]
        if len(group) < int(size):
            self._waiting[label] = group
            return []
        return group
