"""What a server asks, held against the pins: the experiment as a whole, then the message; data is not read for it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import final

from flwr.app import Message

from fedpeft.adapters.paths import matches
from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.errors import ConfigError, FedpeftError, PinError
from fedpeft.pinning.manifest import Pins, PrivacyPins, plain
from fedpeft.pinning.signed import read_pins
from fedpeft.privacy.mechanism import mechanism
from fedpeft.privacy.own import Lifetime
from fedpeft.rounds.roster import job_of
from fedpeft.wire.message import Broadcast, Header, Join
from fedpeft.wire.payload import unpack

__all__ = ["Gate", "gate_at"]

_SLACK = 1e-6
"""Relative, of an epsilon that is computed."""
Found = Iterator[tuple[str, str]]
"""Pins that do not hold, each with the node's own words for it."""


@final
class Gate:
    """Lets through what is pinned; an experiment that was let through once is not looked at again."""

    def __init__(self, pins: Pins) -> None:
        self.pins = pins
        self._admitted: set[str] = set()

    def require(self, experiment: Experiment, message: Message) -> None:
        """Refuse a message that asks for what is not pinned.

        Raises:
            PinError: names the pin; its words are the node's own.
            WireError: the message cannot be read.
        """
        self.require_experiment(experiment)
        if message.metadata.message_type == "query.join":
            joined, plan = unpack(message.content, Join)
            _require(_header(self.pins, experiment, joined))
            _require(_plan(self.pins, Plan.from_bytes(plan)))
        else:
            asked, _ = unpack(message.content, Broadcast)
            _require(_header(self.pins, experiment, asked))
            _require(_broadcast(self.pins, experiment, asked))

    def require_experiment(self, experiment: Experiment) -> None:
        """Refuse an experiment that is not within the pins.

        Raises:
            PinError: as above.
        """
        if experiment.hash not in self._admitted:
            for check in (_tables, _data, _parts, _training, _rounds, _privacy):
                _require(check(self.pins, experiment))
            self._admitted.add(experiment.hash)

    def lifetime(self, given: Lifetime | None) -> Lifetime | None:
        """Return the budget over all experiments: the pinned one, or one that is given elsewhere.

        Raises:
            ConfigError: both.
        """
        pinned = self.pins.privacy
        if pinned is None or pinned.lifetime_epsilon is None or pinned.lifetime_delta is None:
            return given
        if given is not None:
            raise ConfigError("a lifetime budget is pinned, and given again; leave it out beside the manifest")
        return Lifetime(epsilon=pinned.lifetime_epsilon, delta=pinned.lifetime_delta)


def gate_at(path: Path, public: Path | None) -> Gate | None:
    """Return the gate of a manifest; None where it says that nothing is pinned.

    Raises:
        InputError: it cannot be read, or is not signed by the key that is given.
    """
    pins = read_pins(path, public)
    return Gate(pins) if pins is not None else None


def _require(found: Found) -> None:
    for pin, words in found:
        raise PinError(pin, words)


def _tables(pins: Pins, experiment: Experiment) -> Found:
    """Tables that must be what they were, defaults and all."""
    for name in ("model", "task", "partition"):
        if (asked := plain(vars(experiment)[name].table())) != (pinned := getattr(pins, name)):
            yield name, f"asked {asked}, pinned {pinned}"


def _data(pins: Pins, experiment: Experiment) -> Found:
    """Whatever this node may be told to read."""
    for name in ("data", "pretrain_data", "calibration_data"):
        choice = vars(experiment)[name]
        if choice is not None and plain(choice.table()) not in pins.data:
            yield "data", f"{name} is {plain(choice.table())}, which is none of the pinned"


def _parts(pins: Pins, experiment: Experiment) -> Found:
    """Plug-ins by name, and the adapter's own options."""
    options = experiment.adapter.options
    yield from _among("adapter.names", [experiment.adapter.name], pins.adapter.names)
    yield from _among("strategies", [experiment.strategy.name], pins.strategies)
    yield from _among("codecs", [*experiment.codec.names, *experiment.codec_down.names], pins.codecs)
    yield from _at_most("adapter.max_rank", getattr(options, "rank", None), pins.adapter.max_rank)
    for option in ("target_modules", "feedforward_modules"):
        yield from _ends(pins, getattr(options, option, None) or (), partly=True)


def _training(pins: Pins, experiment: Experiment) -> Found:
    train = experiment.train
    if experiment.evaluate.on_clients and not pins.evaluate_on_clients:
        yield "evaluate_on_clients", "evaluate.on_clients asks for sums over this client's own examples"
    if pins.train.max_local_steps is not None:
        if train.local_steps is None:
            yield "train.max_local_steps", f"{train.local_epochs} epochs a round, and steps are pinned"
        yield from _at_most("train.max_local_steps", train.local_steps, pins.train.max_local_steps)
    elif train.local_steps is not None:
        yield "train.max_local_epochs", f"{train.local_steps} steps a round, and epochs are pinned"
    else:
        yield from _at_most("train.max_local_epochs", train.local_epochs, pins.train.max_local_epochs)


def _rounds(pins: Pins, experiment: Experiment) -> Found:
    rounds = experiment.rounds
    yield from _at_most("rounds.max_rounds", rounds.num_rounds, pins.rounds.max_rounds)
    if rounds.min_clients < pins.rounds.least_cohort:
        yield "rounds.least_cohort", f"rounds.min_clients = {rounds.min_clients}, least {pins.rounds.least_cohort}"


def _privacy(pins: Pins, experiment: Experiment) -> Found:
    pinned, asked = pins.privacy, experiment.privacy
    if pinned is None:
        return
    if asked is None or (asked.unit, asked.placement) != (pinned.unit, pinned.placement):
        yield "privacy.unit", f"asked {asked and (asked.unit, asked.placement)}, pinned {pinned.unit, pinned.placement}"
        return
    yield from _at_most("privacy.max_clip", asked.clip, pinned.max_clip)
    yield from _at_most("privacy.max_delta", asked.delta, pinned.max_delta)
    if asked.noise != "secure":
        yield "privacy.noise", "reproducible noise can be taken away by whoever knows the seed"
    if asked.population is not None or asked.adaptive is not None:
        yield "privacy.noise", "population and adaptive make the noise, or the clip, another than the pinned one"
    yield from _noise(pinned, experiment)


def _noise(pinned: PrivacyPins, experiment: Experiment) -> Found:
    """The noise as this node's own accountant finds it, and what all planned rounds cost."""
    privacy = experiment.privacy
    clients = getattr(experiment.partition.options, "num_clients", None) or (1 if pinned.unit == "example" else None)
    if privacy is None or clients is None:
        yield "privacy", "the partition does not say how many clients there are, so no noise can be accounted for"
        return
    try:
        found = mechanism(privacy, train=experiment.train, rounds=experiment.rounds, num_clients=clients)
    except FedpeftError as error:
        yield "privacy", f"no noise can be accounted for: {error}"
        return
    if pinned.least_noise is not None and found.noise_multiplier < pinned.least_noise * (1 - _SLACK):
        yield "privacy.least_noise", f"noise multiplier {found.noise_multiplier:.4g}, least {pinned.least_noise:g}"
    if pinned.max_epsilon is not None:
        spent = max(found.budget, found.spent(found.planned_rounds))
        if spent > pinned.max_epsilon * (1 + _SLACK):
            yield "privacy.max_epsilon", f"epsilon {spent:.4g}, at most {pinned.max_epsilon:g}"


def _header(pins: Pins, experiment: Experiment, header: Header) -> Found:
    envelope = header.envelope
    if envelope.base_hash != pins.base_hash:
        yield "base_hash", f"the server holds base model {envelope.base_hash[:80]!r}, pinned {pins.base_hash}"
    if envelope.job != job_of(experiment):
        yield "job", f"the message is of job {envelope.job[:80]!r}, this node works for {job_of(experiment)}"
    if envelope.config_hash != experiment.hash:
        yield "config_hash", f"the server runs experiment {envelope.config_hash[:80]!r}, this node {experiment.hash}"
    stages = (stage.split(" ", 1)[0] for stage in envelope.codec)  # a name, and its options if it has any
    yield from _among("codecs", stages, pins.codecs)
    yield from _at_most("adapter.max_elements", envelope.carries.num_elements, pins.adapter.max_elements)


def _broadcast(pins: Pins, experiment: Experiment, asked: Broadcast) -> Found:
    last = min(experiment.rounds.num_rounds, pins.rounds.max_rounds)
    yield from _at_most("rounds.max_rounds", asked.envelope.round_number, last)
    yield from _at_most("adapter.max_rank", asked.directive.rank, pins.adapter.max_rank)
    if asked.kind == "evaluate" and not pins.evaluate_on_clients:
        yield "evaluate_on_clients", "asked for sums over this client's own examples"


def _plan(pins: Pins, plan: Plan) -> Found:
    values = plan.values
    yield from _among("adapter.names", [plan.adapter], pins.adapter.names)
    ranks = values.get("ranks", {})
    for rank in (values.get("rank"), *ranks.values()):
        yield from _at_most("adapter.max_rank", rank, pins.adapter.max_rank)
    yield from _ends(pins, plan.paths)


def _ends(pins: Pins, paths: Iterable[str], *, partly: bool = False) -> Found:
    """Paths must end in pinned targets; what an option means is only part of a path, and the plan says the rest."""
    ends = pins.adapter.targets
    for path in paths if ends is not None else ():
        if not any(matches(path, end) or (partly and matches(end, path)) for end in ends or ()):
            yield "adapter.targets", f"{path[:200]!r} is to be adapted, pinned {', '.join(ends or ())}"
            return


def _among(pin: str, asked: Iterable[str], allowed: tuple[str, ...]) -> Found:
    for name in asked:
        if name not in allowed:
            yield pin, f"asked {name[:80]!r}, pinned {', '.join(allowed)}"


def _at_most(pin: str, asked: float | None, most: float | None) -> Found:
    if asked is not None and most is not None and not asked <= most:
        yield pin, f"asked {asked}, at most {most}"
