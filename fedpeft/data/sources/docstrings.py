"""English documentation of the Python packages installed beside fedpeft, labelled by package; nothing to download.

Each example is the running text of one module's, class's or function's docstring. Package names are masked in all
texts, since a name would give the label away. Texts depend on the installed versions as well as on the seed.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self, final

from datasets import Dataset
from pydantic import Field, model_validator

from fedpeft.config.base import Frozen
from fedpeft.data import packages, pairs, prose
from fedpeft.data.base import Source, Splits
from fedpeft.data.splits import held_out, permutation
from fedpeft.errors import DataError

__all__ = ["Options", "make"]

_RESERVE = 1.1
"""Texts read for each one wanted, to stand in for those that another package has too; the files beyond stay unread."""


@final
class Options(Frozen):
    """Which packages, and which of their texts."""

    packages: tuple[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], ...] = Field(
        default=("numpy", "sklearn", "torch", "transformers", "pandas", "scipy"), min_length=1
    )
    """Import names of installed packages, each once; their order is the order of the labels."""
    max_per_package: int = Field(default=400, ge=2)
    """Keep so many texts of each package at most, drawn by the seed."""
    min_words: int = Field(default=8, ge=1)
    """Leave out shorter texts."""
    max_words: int = Field(default=60, ge=1)
    """Cut longer texts after so many words."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the texts that is held out."""
    pairs: bool = False
    """Give pairs instead: a text's first sentence and, in ``text2``, its continuation or that of another text; the
    label says which. min_words then counts for either passage."""
    pairs_within: Literal["package", "all"] = "package"
    """Where the other text of a pair comes from: the same package, which is hard to tell, or any of them."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.packages)) < len(self.packages):
            raise ValueError("packages: expected each package once")
        if self.min_words > self.max_words:
            raise ValueError(f"min_words = {self.min_words}: expected <= max_words = {self.max_words}")
        if self.pairs_within != "package" and not self.pairs:
            raise ValueError(f"pairs_within = {self.pairs_within!r}: has no effect without pairs = true")
        return self


class _Example(NamedTuple):
    package: str
    module: str
    text: str


@final
@dataclass(frozen=True, kw_only=True)
class Docstrings(Source):
    """Texts in columns ``text``, ``label`` (the package) and ``client`` (package and first module below it)."""

    options: Options

    def load(self, *, seed: int) -> Splits:
        """Read, clean, deduplicate and split the texts.

        Raises:
            DataError: a package is not installed, or has no text that fits.
        """
        candidates = [example for name in self.options.packages for example in self._candidates(name, seed)]
        own = _unshared(candidates)
        if self.options.pairs:
            own = [own[at] for at in pairs.distinct([each.text for each in own], min_words=self.options.min_words)]
        examples = self._limited(own, seed)
        columns = self._pairs(examples, seed) if self.options.pairs else self._texts(examples)
        data = Dataset.from_dict({**columns, "client": [example.module for example in examples]})
        train, test = held_out(data, fraction=self.options.test_fraction, seed=seed)
        return Splits(train=train, test=test, label_names=pairs.LABELS if self.options.pairs else self.options.packages)

    def _texts(self, examples: list[_Example]) -> dict[str, list[str] | list[int]]:
        labels = [self.options.packages.index(example.package) for example in examples]
        return {"text": [example.text for example in examples], "label": labels}

    def _pairs(self, examples: list[_Example], seed: int) -> dict[str, list[str] | list[int]]:
        parts = [pairs.passages(example.text, min_words=self.options.min_words) for example in examples]
        groups = [example.package if self.options.pairs_within == "package" else "all" for example in examples]
        made = pairs.joined([part for part in parts if part], groups, seed=seed)
        first, second, labels = zip(*made, strict=True)
        return {"text": list(first), "text2": list(second), "label": list(labels)}

    def _candidates(self, package: str, seed: int) -> list[_Example]:
        distinct: dict[str, _Example] = {}
        for example in self._read(package, seed):
            distinct.setdefault(example.text.lower(), example)
            if len(distinct) >= _RESERVE * self.options.max_per_package:
                break
        return list(distinct.values())

    def _read(self, package: str, seed: int) -> Iterator[_Example]:
        """Yield a package's texts file by file; the files come in seeded order, so that a limit favours none."""
        root = packages.locate(package)
        paths = packages.sources(root)
        names = prose.mask_pattern(packages.known_names(self.options.packages))
        for index in permutation(len(paths), "docstrings", package, seed=seed):
            module = ".".join([package, *paths[index].relative_to(root).with_suffix("").parts[:1]])
            for docstring in packages.docstrings(paths[index]):
                if text := self._clean(docstring, names):
                    yield _Example(package=package, module=module, text=text)

    def _clean(self, docstring: str, names: re.Pattern[str]) -> str:
        words = prose.mask(prose.prose(docstring), names).split()
        text = " ".join(words[: self.options.max_words])
        fits = len(words) >= self.options.min_words and prose.is_english(text)
        if fits and self.options.pairs:
            fits = pairs.passages(text, min_words=self.options.min_words) is not None
        return text if fits else ""

    def _limited(self, examples: list[_Example], seed: int) -> list[_Example]:
        kept: list[_Example] = []
        for package in self.options.packages:
            own = [example for example in examples if example.package == package]
            if not own:
                raise DataError(
                    f"data.packages: {package!r} has no text of at least min_words = {self.options.min_words} words; "
                    "lower min_words or leave the package out"
                )
            order = permutation(len(own), "docstrings limit", package, seed=seed)
            kept += [own[index] for index in sorted(order[: self.options.max_per_package])]
        return kept


def make(options: Options) -> Source:
    """Return the source."""
    return Docstrings(options=options)


def _unshared(examples: list[_Example]) -> list[_Example]:
    """Drop every text that stands in two packages: its label would be a coin toss."""
    owners = Counter(example.text.lower() for example in examples)
    return sorted(example for example in examples if owners[example.text.lower()] == 1)
