"""A pretrained transformers checkpoint from a local folder or a hub, safetensors only."""

from dataclasses import dataclass
from typing import final

from pydantic import Field

from fedpeft.errors import ModelError
from fedpeft.files import rooted
from fedpeft.models._checkpoint import ReadOptions, read_checkpoint
from fedpeft.models.base import Loaded, ModelSource, Wanted

__all__ = ["Options", "Pretrained", "make"]


@final
class Options(ReadOptions):
    """Which checkpoint."""

    path: str = Field(min_length=1)
    """A hub id (``owner/name``) or a local folder; a folder of that name wins."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """The commit of a hub id, in full; must be unset for a local folder."""


@final
@dataclass(frozen=True)
class Pretrained(ModelSource):
    """A checkpoint that someone else trained."""

    options: Options

    def load(self, wanted: Wanted) -> Loaded:
        """Read the checkpoint.

        Raises:
            ModelError: no such folder, a revision where none belongs or none where one does, or not safe to read.
        """
        path, revision = self._checked()
        model, tokenizer = read_checkpoint(path, wanted, options=self.options, revision=revision)
        return Loaded(model=model, tokenizer=tokenizer, reference=path, revision=revision)

    def _checked(self) -> tuple[str, str | None]:
        path, revision = self.options.path, self.options.revision
        if (folder := rooted(path)).is_dir():
            if revision is not None:
                raise ModelError(f"model.revision = {revision!r}: {path} is a local folder, which has none; remove it")
            return str(folder.resolve()), None
        if _looks_local(path):
            raise ModelError(f"model.path = {path!r}: no such folder")
        if revision is None:
            raise ModelError(f"model.path = {path!r}: no such folder; a hub id needs revision = 40 hex digits")
        return path, revision


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~", "\\")) or path.count("/") > 1


def make(options: Options) -> ModelSource:
    """Build the source."""
    return Pretrained(options)
