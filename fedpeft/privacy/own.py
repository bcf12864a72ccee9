"""What a client itself keeps of its data's privacy: a ledger for each experiment, and a budget over all of them.

For each experiment a folder holds ``HASH-CLIENT.jsonl``, the charges, and ``HASH-CLIENT.json``, the terms: what one
charge costs, there before the first. All on the same records add up, so a lifetime budget looks at all of a client's.
Which experiment comes next may depend on what the last one gave; Renyi's accountant holds as a limit for that too.

A client cannot see the rounds of unit client that do not draw it, and its noise is the server's: such an experiment is
counted whole, as planned, from its first round. Neighbours of the two units differ, so one budget is of one unit.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from fedpeft.errors import InputError, ResumeError, RunError
from fedpeft.files import locked, write_atomic
from fedpeft.privacy.ledger import Charge, Ledger

if TYPE_CHECKING:  # a light process names a ledger without what accounts for it
    from fedpeft.privacy.accounting import Releases
    from fedpeft.privacy.mechanism import Mechanism

__all__ = ["ACCOUNTANT", "Lifetime", "OwnLedger", "Terms", "spent_by_client"]

ACCOUNTANT: Final = "rdp"
"""Of several experiments."""
_NAME = re.compile(r"[0-9a-f]{32}-([0-9]+)\.jsonl")


@final
@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """A budget over all experiments."""

    epsilon: float
    delta: float

    @classmethod
    def of(cls, epsilon: float | None, delta: float | None, *, where: str) -> "Lifetime | None":
        """Return the budget, or None where neither number is given.

        Raises:
            InputError: one of them alone, or out of bounds; names where they stand.
        """
        if epsilon is None and delta is None:
            return None
        if epsilon is None or delta is None:
            raise InputError(f"{where}: a lifetime budget has an epsilon and a delta; give both or neither")
        if not (0 < epsilon < math.inf and 0 < delta < 1):
            raise InputError(f"{where}: expected epsilon above 0 and delta in (0, 1), got {epsilon} and {delta}")
        return cls(epsilon=float(epsilon), delta=float(delta))


@final
@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the charges of one experiment cost."""

    unit: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    """Releases a charge."""
    at_least: int
    """Charges that count from the first on."""

    @classmethod
    def of(cls, mechanism: "Mechanism") -> "Terms":
        """Return a mechanism's terms."""
        return cls(
            unit=mechanism.privacy.unit,
            noise_multiplier=mechanism.noise_multiplier,
            sample_rate=mechanism.sample_rate,
            steps=mechanism.steps,
            at_least=0 if mechanism.privacy.by_client else mechanism.planned_rounds,
        )

    def releases(self, charges: int) -> "Releases":
        """Return what so many charges released at most."""
        from fedpeft.privacy.accounting import Releases

        rounds = max(charges, self.at_least) if charges else 0
        return Releases(noise_multiplier=self.noise_multiplier, sample_rate=self.sample_rate, steps=self.steps * rounds)


@final
@dataclass(frozen=True, kw_only=True)
class OwnLedger:
    """One client's ledger of one experiment, among those of all."""

    folder: Path
    experiment: str
    """Its hash."""
    client: int
    lifetime: Lifetime | None = None

    def admit(self, mechanism: "Mechanism | None") -> None:
        """Refuse, under a lifetime budget, what would tell of the data without a cost that can be counted.

        Raises:
            RunError: no privacy, noise that the server can take away, or noise made for a larger federation.
        """
        if self.lifetime is None:
            return
        if mechanism is None:
            reason = "the experiment has no [privacy]"
        elif mechanism.privacy.noise == "reproducible":
            reason = "privacy.noise = 'reproducible' can be taken away by whoever knows the seed"
        elif mechanism.privacy.population is not None:
            reason = "privacy.population: the noise is that of a larger federation than this one"
        else:
            return
        raise RunError(f"{self.folder}: this client has a lifetime budget, and {reason}; its data takes no part")

    def charge(self, charge: Charge, mechanism: "Mechanism | None") -> None:
        """Write a charge ahead of the training that it pays for.

        Raises:
            RunError: it would exceed the experiment's budget or the lifetime's, or cannot be counted; nothing is
                written.
            ResumeError: a ledger is damaged, or was begun on other terms.
        """
        self.admit(mechanism)
        if mechanism is None:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.folder / "lock", refusal=None):
            ledger, terms = Ledger(self._path), Terms.of(mechanism)
            self._require_terms(terms)
            if self.lifetime is not None:
                self._require_lifetime(self.lifetime, terms, len(ledger.charges()) + 1)
            ledger.charge(charge, mechanism)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.experiment[:32]}-{self.client}.jsonl"

    def _require_terms(self, terms: Terms) -> None:
        """Put the terms beside the charges to come, or see that they are the same."""
        if self._path.exists() or self._path.with_suffix(".json").exists():
            if (found := _terms(self._path)) != terms:
                raise ResumeError(
                    f"{self._path}: was charged on other terms ({found}) than this process would ({terms}); go on with "
                    "the libraries that began it, or start another experiment"
                )
            return
        write_atomic(self._path.with_suffix(".json"), json.dumps(asdict(terms), sort_keys=True) + "\n")

    def _require_lifetime(self, lifetime: Lifetime, terms: Terms, charges: int) -> None:
        from fedpeft.privacy.accounting import composed

        known = {**_known(self.folder).get(self.client, {}), self._path: (terms, charges)}
        if len(units := {each.unit for each, _ in known.values()}) > 1:
            raise RunError(
                f"{self.folder}: client {self.client} was charged for units {sorted(units)}, and one budget is of one "
                "unit; nothing was trained; give experiments of the other unit a state folder of their own"
            )
        parts = [each.releases(count) for each, count in known.values()]
        if (total := composed(parts, delta=lifetime.delta, accountant=ACCOUNTANT)) > lifetime.epsilon:
            raise RunError(
                f"{self.folder}: this round would bring client {self.client} to epsilon {total:.4g} over its "
                f"{len(known)} experiments, and its lifetime budget is {lifetime.epsilon:g} at delta "
                f"{lifetime.delta:g}; nothing was trained"
            )


def spent_by_client(folder: Path, *, delta: float) -> dict[int, dict[str, float]]:
    """Return client -> unit -> epsilon at this delta, over all experiments that the folder knows.

    Raises:
        ResumeError: a ledger is damaged.
    """
    from fedpeft.privacy.accounting import composed

    found: dict[int, dict[str, float]] = {}
    for client, known in sorted(_known(folder).items()):
        parts = defaultdict(list)
        for terms, charges in known.values():
            parts[terms.unit].append(terms.releases(charges))
        found[client] = {unit: composed(own, delta=delta, accountant=ACCOUNTANT) for unit, own in parts.items()}
    return found


def _known(folder: Path) -> dict[int, Mapping[Path, tuple[Terms, int]]]:
    """Return client -> its ledgers, with terms and number of charges; a repeated charge counts as one more."""
    found: dict[int, dict[Path, tuple[Terms, int]]] = defaultdict(dict)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if named := _NAME.fullmatch(path.name):
            found[int(named[1])][path] = _terms(path), len(Ledger(path).charges())
    return dict(found)


def _terms(path: Path) -> Terms:
    beside = path.with_suffix(".json")
    try:
        found = Terms(**json.loads(beside.read_text(encoding="utf-8")))
        if not all(type(getattr(found, name)) is kind for name, kind in Terms.__annotations__.items()):
            raise TypeError("a value of another kind")
    except (OSError, ValueError, TypeError) as error:
        raise ResumeError(
            f"{beside}: missing or damaged ({error}): what this ledger's charges cost is not known, so nothing more "
            "may be spent on this data; put the file back, or count what was spent by hand and start another folder"
        ) from error
    return found
