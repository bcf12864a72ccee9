"""The resident trainer put together: the client app of every engine, its parts kept, behind the service."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import final

from flwr.app import Context, Message

from fedpeft import config
from fedpeft.adapters.plan import Plan
from fedpeft.client import Node, client_app
from fedpeft.config import Experiment
from fedpeft.engines.apps import ANSWERS_KEY, LEDGER_KEYS, PIN_KEYS, SIGNING_KEY, split_override
from fedpeft.errors import ConfigError
from fedpeft.pinning.gate import Gate
from fedpeft.privacy.own import Lifetime, OwnLedger
from fedpeft.rounds.answered import Answered
from fedpeft.rounds.roster import job_of
from fedpeft.trainer.address import parse
from fedpeft.trainer.message import Question
from fedpeft.trainer.service import serving
from fedpeft.trainer.states import States, opened
from fedpeft.trainer.worker import Call, Worker
from fedpeft.training.workbench import Workbench, assemble, require_loadable
from fedpeft.wire.failure import tells
from fedpeft.wire.signature import Signer

__all__ = ["Parts", "run_trainer"]

_LOG = logging.getLogger(__name__)


@final
class Parts:
    """The parts of the experiment that was last worked for."""

    def __init__(
        self,
        pinned: Experiment | None = None,
        *,
        ledgers: Path | None = None,
        lifetime: Lifetime | None = None,
        gate: Gate | None = None,
        signer: Signer | None = None,
        answers: Path | None = None,
    ) -> None:
        """Take the one experiment that is worked for; where there is none, each question brings its own.

        ``ledgers`` is the folder of what each client's data has cost in each experiment, over all its runs, and
        ``lifetime`` the budget over all experiments. ``gate`` refuses what is not pinned, ``signer`` is the key by
        which the client signs, and ``answers`` the folder of what each client has answered.
        """
        self._pinned = pinned
        self._ledgers = ledgers
        self._lifetime = lifetime
        self._gate = gate
        self._signer = signer
        self._answers = answers
        self._held: tuple[str, bytes, Workbench] | None = None

    def answer(self, question: Question, message: Message, context: Context, call: Call) -> Message:
        """Answer as the client app does in Flower's process; a call that ends is given up at the next batch."""
        with ExitStack() as watched:

            def workbench(_: Context, plan: bytes) -> Workbench:
                bench = self._bench(self._experiment(question), plan)
                hook = bench.adapted.attached.model.register_forward_pre_hook(lambda *_: call.require())
                watched.callback(hook.remove)
                return bench

            def ledger(_: Context, experiment: Experiment) -> OwnLedger | None:
                return self._ledger(experiment, question)

            own = Node(
                experiment=lambda _: self._experiment(question),
                workbench=workbench,
                ledger=ledger,
                gate=lambda _: self._pins(question),
                tells=tells(),
                signer=lambda _: self._signer,
                answered=lambda _: self._answered(question),
            )
            return client_app(own)(message, context)

    def load(self, states: States) -> None:
        """Build all parts where a job of the experiment is under way; else see that data and base model can be read.

        Raises:
            InputError: they cannot.
        """
        if self._pinned is None:
            return
        plan = states.newest_plan(job_of(self._pinned))
        if plan is None:
            require_loadable(self._pinned)
        else:
            self._bench(self._pinned, plan)

    def _bench(self, experiment: Experiment, plan: bytes) -> Workbench:
        if self._held is None or self._held[:2] != (experiment.hash, plan):
            self._held, began = None, time.monotonic()
            self._held = (experiment.hash, plan, assemble(experiment, Plan.from_bytes(plan)))
            _LOG.info("loaded experiment=%s seconds=%.1f", job_of(experiment), time.monotonic() - began)
        return self._held[2]

    def _pins(self, question: Question) -> Gate | None:
        _require_without(question, PIN_KEYS, "reads the manifest of --pins")
        return self._gate

    def _answered(self, question: Question) -> Answered | None:
        _require_without(
            question, (SIGNING_KEY, ANSWERS_KEY), "has --application-key and keeps what it answered in its --state"
        )
        return None if self._answers is None else Answered(self._answers / str(question.client))

    def _ledger(self, experiment: Experiment, question: Question) -> OwnLedger | None:
        _require_without(
            question, LEDGER_KEYS, "keeps the ledger in its --state and has --lifetime-epsilon and --lifetime-delta"
        )
        if self._ledgers is None:
            return None
        return OwnLedger(
            folder=self._ledgers, experiment=experiment.hash, client=question.client, lifetime=self._lifetime
        )

    def _experiment(self, question: Question) -> Experiment:
        if self._pinned is not None:
            return self._pinned
        name = str(question.run_config.get("experiment", ""))
        if question.experiment is None:
            raise ConfigError(
                f"run-config experiment = {name!r}: the app's bundle holds no such file, and the trainer was started "
                "without --experiment"
            )
        overrides = split_override(str(question.run_config.get("override", "")))
        return config.read(question.experiment, overrides, where=name, name=Path(name).stem, outside=self._gate is None)


def _require_without(question: Question, keys: tuple[str, ...], instead: str) -> None:
    if found := [key for key in keys if key in question.node_config]:
        raise ConfigError(
            f"node config: {', '.join(found)} without effect, since this node has a trainer, which {instead}; "
            "leave them out"
        )


def run_trainer(
    listen: str,
    state: Path,
    experiment: Experiment | None = None,
    *,
    lifetime: Lifetime | None = None,
    gate: Gate | None = None,
    signer: Signer | None = None,
) -> None:
    """Answer questions until SIGTERM or SIGINT; what clients keep is in the folder ``state``.

    ``lifetime`` is each client's budget over all experiments, ``gate`` what is pinned, ``signer`` its key for replies.

    Raises:
        InputError: the address or the folder cannot be had, or data or model of the experiment cannot be read.
        PinError: the experiment is not within the pins.
    """
    address, parts = parse(listen), _parts(experiment, state, lifetime, gate, signer)
    with opened(state) as states, _stopping() as stop:
        worker = Worker(parts.answer, states)
        try:
            with serving(address, worker) as ready:
                works_for = job_of(experiment) if experiment else "whatever its app is run with"
                _LOG.info("trainer started: listen=%s state=%s experiment=%s", address, state.resolve(), works_for)
                loaded = worker.submit(partial(parts.load, states))

                def told(done: "Future[None]") -> None:
                    if done.cancelled() or done.exception() is not None:
                        stop.set()
                        return
                    ready()
                    _LOG.info("trainer ready")

                loaded.add_done_callback(told)
                stop.wait()
                if loaded.done():
                    loaded.result()
        finally:
            worker.close()
    _LOG.info("trainer stopped")


def _parts(
    experiment: Experiment | None, state: Path, lifetime: Lifetime | None, gate: Gate | None, signer: Signer | None
) -> Parts:
    """Return the parts to be; an experiment of the trainer's own must be within the pins."""
    if gate is not None:
        lifetime = gate.lifetime(lifetime)
        if experiment is not None:
            gate.require_experiment(experiment)
    kept = {"ledgers": state / "privacy", "answers": state / "answers"}
    return Parts(experiment, lifetime=lifetime, gate=gate, signer=signer, **kept)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Yield what is set when the process is told to stop."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
