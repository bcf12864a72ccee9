"""Everything one experiment needs on one side, put together once: data, adapted model, codec, strategy."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, final

import torch

from fedpeft import seeds
from fedpeft.adapters.plan import Plan
from fedpeft.codecs.base import Codec, Common
from fedpeft.codecs.chain import chained
from fedpeft.config import Experiment
from fedpeft.data.base import Splits
from fedpeft.data.shares import Shares
from fedpeft.data.virtual import VirtualShares
from fedpeft.errors import DataError
from fedpeft.privacy.mechanism import Mechanism, mechanism
from fedpeft.privacy.proof import prove
from fedpeft.strategies.base import State, Strategy
from fedpeft.tasks.base import Examples
from fedpeft.tasks.given import Given
from fedpeft.tensors import Spec, Tensors
from fedpeft.timing import timed
from fedpeft.training.adapted import Adapted, adapt, load_base
from fedpeft.training.changes import confirmed, settled_change
from fedpeft.training.dealing import AnyShares, deal_out, virtual
from fedpeft.training.feedback import require_feedback, settled
from fedpeft.training.fit import require_fit
from fedpeft.training.frozen import Frozen, Use, training_use
from fedpeft.training.loop import evaluate, to_device
from fedpeft.training.lower import find_lower
from fedpeft.training.private_fit import require_private

__all__ = ["CACHED_CLIENTS", "Workbench", "assemble", "require_loadable"]

CACHED_CLIENTS = 1024
"""Clients whose encoded examples stay in memory, the last ones that were read."""
_PROBE = 4


@final
@dataclass(frozen=True, kw_only=True)
class Workbench:
    """All parts of one experiment. A client's data is encoded when the client is first drawn, never before."""

    experiment: Experiment
    strategy: Strategy[Any]
    codec: Codec
    """Of what clients send."""
    codec_down: Codec
    """Of what the server sends."""
    splits: Splits
    shares: AnyShares
    adapted: Adapted
    mechanism: Mechanism | None = None
    """What the [privacy] table comes to."""
    frozen: Frozen | None = None
    """What keeps the states that frozen lower blocks give, where compute.cache_frozen says so."""
    _encoded: OrderedDict[int, tuple[Examples, Examples]] = field(default_factory=OrderedDict, repr=False)

    @cached_property
    def held_out(self) -> Examples:
        """The held-out examples, encoded; at most evaluate.max_examples."""
        limit = self.experiment.evaluate.max_examples
        test = self.splits.test
        chosen = test if limit is None else test.select(range(min(limit, len(test))))
        return self.adapted.task.encode(chosen, self.adapted.loaded.tokenizer)

    def rehearse(self) -> None:
        """Encode the held-out examples and score one: what the task or the model cannot read is refused at the start.

        Raises:
            InputError: the data does not fit the task, the task the model, or the strategy the adapter.
        """
        if not self.held_out:
            raise DataError("no held-out example is left once encoded; hold out more, or shorten task.max_length")
        first = self.strategy.init(self.adapted.attached.slots, self.adapted.initial)
        self.adapted.place(first.adapter, self.residuals(first))
        self.score(self.held_out[:1])
        if self.frozen is not None:
            self.frozen.prove(self.held_out[:_PROBE])
        _ = self.proven

    @cached_property
    def proven(self) -> bool:
        """Whether gradients of single examples were tried on public examples and found right; True or an error.

        Raises:
            UnsupportedError: they are not what they should be; nothing is trained.
        """
        if self.mechanism is None or self.mechanism.privacy.unit != "example":
            return True
        model, task = self.adapted.attached.model, self.adapted.task
        probe = to_device(task.collate([self.held_out[at] for at in range(min(_PROBE, len(self.held_out)))]), model)
        prove(model, self.adapted.adapter.gradients(), probe, task.losses)
        return True

    def residuals(self, state: State) -> Tensors:
        """Return what the strategy adds to frozen weights, group -> (d_out, d_in): the bits that clients rebuild."""
        slots = self.adapted.attached.slots
        return self.strategy.residuals(slots, self.strategy.residual_parts(slots, state))

    def common(self, direction: Literal["up", "down"], *, round_number: int, client: int | None = None) -> Common:
        """Return what server and client know alike of one body before it travels; one body may go down to many."""
        roles = {slot.name: slot.role for slot in self.adapted.attached.slots}
        whose = () if client is None else (client,)
        return Common(roles=roles, seed=seeds.derive(self.experiment.seed, "codec", direction, round_number, *whose))

    @property
    def claim(self) -> str:
        """What messages claim of privacy; empty without."""
        return self.mechanism.claim if self.mechanism is not None else ""

    def remembers(self) -> bool:
        """Return whether clients keep anything between rounds: for their strategy, or for error feedback."""
        return self.strategy.remembers() or self.experiment.feedback.up

    def keeps(self) -> bool:
        """Return whether clients write anything down between rounds, if only what they can be sent again."""
        return self.remembers() or self.sends_changes

    @property
    def sends_changes(self) -> bool:
        """Whether what goes down is how the adapter changed: so with a codec that leaves entries out."""
        return self.codec_down.changes_only

    @cached_property
    def going_down(self) -> tuple[Spec, ...]:
        """Names and shapes of the adapter's tensors that clients are sent."""
        return self.strategy.downlink(self.adapted.attached.slots)

    def settled(self, before: State, after: State, *, round_number: int, clients: Sequence[int] = ()) -> State:
        """Return the state after a round, its adapter what clients decode where changes go down, or with feedback.

        ``clients`` are those whose updates were taken.
        """
        back, common = self.experiment.feedback.down, self.common("down", round_number=round_number)
        names = [spec.name for spec in self.going_down]
        if self.sends_changes:
            if not round_number:
                return after
            kept: dict[str, Any] = {"round_number": round_number, "feedback": back}
            state = settled_change(self.codec_down, common, names, before, after, **kept)
            return confirmed(state, clients, round_number - 1)
        return settled(self.codec_down, common, names, before, after) if back else after

    def retracted(self, state: State) -> State:
        """Return the aggregate where the adapter's parameters live."""
        return replace(state, adapter=self.adapted.adapter.retract(self.adapted.attached.slots, state.adapter))

    @timed("evaluate")
    def evaluate(self, adapter: Tensors, residuals: Tensors) -> dict[str, float]:
        """Return the metrics of an adapter, with these residuals on the frozen weights, on the held-out examples."""
        self.adapted.place(adapter, residuals)
        return self.adapted.task.metrics(self.score(self._held_with_states()))

    @timed("evaluate")
    def score(self, examples: Examples) -> dict[str, float]:
        """Return summed scores of the adapter in place."""
        return evaluate(
            self.adapted.attached.model,
            examples,
            task=self.adapted.task,
            batch_size=self.experiment.evaluate.batch_size,
            precision=self.experiment.compute.precision,
        )

    @timed("data")
    def client_examples(self, client: int) -> tuple[Examples, Examples]:
        """Return one client's training examples and its own held-out ones (empty unless evaluated on clients).

        Raises:
            DataError: the client holds too few examples.
        """
        if client not in self._encoded:
            self._encoded[client] = self._split(client)
            if len(self._encoded) > CACHED_CLIENTS:
                self._encoded.popitem(last=False)
        return self._with_states(client, *self._encoded[client])

    def _with_states(self, client: int, train: Examples, held: Examples) -> tuple[Examples, Examples]:
        if self.frozen is None:
            return train, held
        num_clients = self.shares.num_clients
        use = training_use(self.experiment, self.mechanism, num_clients=num_clients, num_examples=len(train))
        return (
            self.frozen.joined(f"client-{client}", train, use, sets=num_clients),
            self.frozen.joined(f"client-{client}-held", held, Use(a_turn=1, turns=use.turns)),
        )

    def _held_with_states(self) -> Examples:
        if self.frozen is None:
            return self.held_out
        return self.frozen.joined("held-out", self.held_out, Use(a_turn=1, turns=self.experiment.rounds.num_rounds))

    def _split(self, client: int) -> tuple[Examples, Examples]:
        encoded = self.adapted.task.encode(self.shares.examples(client), self.adapted.loaded.tokenizer)
        if not len(encoded):
            raise DataError(f"client {client} has no examples to train on once encoded")
        if not self.experiment.evaluate.on_clients:
            return encoded, []
        num_held = max(1, int(len(encoded) * self.experiment.evaluate.client_fraction))
        if num_held >= len(encoded):
            raise DataError(f"client {client} holds {len(encoded)} example(s): evaluate.on_clients needs at least 2")
        generator = seeds.generator(self.experiment.seed, "client-split", client)
        order = torch.randperm(len(encoded), generator=generator).tolist()
        return [encoded[index] for index in order[num_held:]], [encoded[index] for index in order[:num_held]]


def assemble(
    experiment: Experiment, plan: Plan | None = None, dealt: tuple[Splits, Shares | None] | None = None
) -> Workbench:
    """Build all parts: the server makes the plan, a client is given it; data that is dealt already is not read anew.

    Raises:
        InputError: a part cannot be built, or two parts do not go together.
    """
    splits, found = dealt or deal_out(experiment)
    shares = found or virtual(experiment, splits)
    adapted = adapt(experiment, splits.label_names, plan)
    strategy: Strategy[Any] = experiment.strategy.build()
    require_fit(experiment, strategy, adapted, num_clients=shares.num_clients)
    codec, codec_down = chained(experiment.codec.build()), chained(experiment.codec_down.build())
    require_feedback(experiment, strategy, adapted.adapter, up=codec, down=codec_down)
    adapted, frozen = _frozen(experiment, adapted)
    return Workbench(
        experiment=experiment,
        strategy=strategy,
        codec=codec,
        codec_down=codec_down,
        splits=splits,
        shares=shares,
        adapted=adapted,
        mechanism=_mechanism(experiment, strategy, adapted, shares),
        frozen=frozen,
    )


def _frozen(experiment: Experiment, adapted: Adapted) -> tuple[Adapted, Frozen | None]:
    """Have the task take states, and what keeps them, where that is asked for."""
    if not experiment.compute.cache_frozen:
        return adapted, None
    lower = find_lower(adapted.attached)
    return replace(adapted, task=Given(adapted.task, lower.entered)), Frozen(lower, adapted.task, experiment)


def require_loadable(experiment: Experiment) -> None:
    """Read data and base model and keep neither: what a node lacks shows before it is asked for anything.

    Raises:
        InputError: either cannot be had.
    """
    splits, _ = deal_out(experiment)
    load_base(experiment, experiment.task.build(), splits.label_names)


def _mechanism(
    experiment: Experiment, strategy: Strategy[Any], adapted: Adapted, shares: AnyShares
) -> Mechanism | None:
    privacy, num_clients = experiment.privacy, shares.num_clients
    if privacy is None:
        return None
    require_private(experiment, privacy, strategy, adapted, num_clients=num_clients)
    return mechanism(
        privacy,
        train=experiment.train,
        rounds=experiment.rounds,
        num_clients=num_clients,
        virtual=isinstance(shares, VirtualShares),
    )
