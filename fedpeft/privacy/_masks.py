"""Attention masks built without looking at their values, for as long as torch.func differentiates an encoder.

Transformers leaves the mask away where no token of a batch is padding. That asks for the value of ``mask.all()``, which
torch.func does not have while it traces. With the mask always in place the attention scores are the same numbers.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from transformers import masking_utils

__all__ = ["masks_in_place"]

SHORTCUTS = ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa")
"""Questions of transformers' whether a mask may be left away."""


@final
class _Held:
    """Counts who is inside, so that threads that overlap neither restore too soon nor save what was put there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: dict[str, Any] = {}

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = {name: vars(masking_utils)[name] for name in SHORTCUTS if hasattr(masking_utils, name)}
                for name in self._saved:
                    setattr(masking_utils, name, _never)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for name, function in self._saved.items():
                    setattr(masking_utils, name, function)


_HELD = _Held()


@contextmanager
def masks_in_place() -> Iterator[None]:
    """Have transformers build every mask inside the block, and be as it was after the last block is left.

    A forward pass of another thread meanwhile builds its masks too: slower, the same numbers.
    """
    _HELD.enter()
    try:
        yield
    finally:
        _HELD.leave()


def _never(*_: Any, **__: Any) -> bool:
    return False
