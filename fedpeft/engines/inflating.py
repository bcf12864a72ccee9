"""How much memory a reply may take while Flower puts it together, which is before any code of ours sees it.

An array travels in pieces of 5 MiB with a list of which piece stands where, and that list may name one piece any number
of times: 5 MiB on the wire become 2 GB of memory (as seen with flwr 1.39 and 1.41). Lists of numbers grow too, as each
becomes an object. So what is put together is counted as it grows, for one reply at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, final

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedpeft.errors import RefusedError

__all__ = ["counted", "counting"]

_RECORDS: tuple[type[Any], ...] = (Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict)
_LONGEST_HEAD = 1 << 20
"""Bytes of an array without its pieces: an honest one of 2 GiB has less than 8 KiB."""


@final
class _Budget:
    """Bytes that a reply may still take."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def take(self, num_bytes: int) -> None:
        self._left -= num_bytes + 1  # a piece without bytes is not free either
        if self._left < 0:
            raise RefusedError("size", f"reply of more than {self._most} bytes, counted as it is put together")


_BUDGET: ContextVar[_Budget | None] = ContextVar("_BUDGET", default=None)


@final
class _Piece:
    """A piece of an array that is paid for each time it is laid down."""

    def __init__(self, piece: Any, budget: _Budget) -> None:
        self._piece, self._budget = piece, budget

    @property
    def data(self) -> Any:
        """The piece's bytes."""
        self._budget.take(len(self._piece.data))
        return self._piece.data


@contextmanager
def counting() -> Iterator[None]:
    """Have Flower's records counted while they are put together, in this process and while the block lasts."""
    with ExitStack() as undo:
        for kind in _RECORDS:
            original = vars(kind)["inflate"]
            undo.callback(setattr, kind, "inflate", original)
            kind.inflate = classmethod(_counted(original.__func__))
        yield


@contextmanager
def counted(most: int) -> Iterator[None]:
    """Let what this thread puts together within the block take at most so many bytes; of no effect without counting.

    Raises:
        RefusedError: more.
    """
    token = _BUDGET.set(_Budget(most))
    try:
        yield
    finally:
        _BUDGET.reset(token)


def _counted(original: Callable[..., Any]) -> Callable[..., Any]:
    def inflate(cls: type[Any], object_content: bytes, children: Mapping[str, Any] | None = None) -> Any:
        budget = _BUDGET.get()
        if budget is None:
            return original(cls, object_content, children)
        budget.take(len(object_content))
        if not issubclass(cls, Array):
            return original(cls, object_content, children)
        if len(object_content) > _LONGEST_HEAD:
            raise RefusedError("size", f"array whose head has {len(object_content)} bytes, at most {_LONGEST_HEAD}")
        return original(cls, object_content, {key: _Piece(child, budget) for key, child in (children or {}).items()})

    return inflate
