"""The server's half of a round: draw a cohort, send the adapter, add up the checked replies, evaluate, commit.

Read top to bottom: serve -> run_round -> its steps. All that a round leaves behind is on disk before the next begins.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from flwr.serverapp import Grid

from fedpeft.report.export import write_adapter
from fedpeft.report.page import report_page
from fedpeft.report.record import RoundRecord
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.summary import summarise
from fedpeft.report.watch import Watcher
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds.checkpoint import Checkpoint
from fedpeft.rounds.cohort import cohort_of, spares_of
from fedpeft.rounds.exchange import Exchange
from fedpeft.rounds.federation import Clients, Federation
from fedpeft.rounds.fence import claim
from fedpeft.rounds.guard import Guard
from fedpeft.rounds.journal import Page, inputs_of
from fedpeft.rounds.measured import measured
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.rounds.resume import checkpoint_of, resumed
from fedpeft.rounds.roster import find_clients
from fedpeft.rounds.tally import Tally
from fedpeft.strategies.base import ClientUpdate, State
from fedpeft.timing import phase, timed
from fedpeft.training.workbench import Workbench
from fedpeft.wire.message import Update
from fedpeft.wire.signature import Keys

__all__ = ["serve"]


def serve(
    grid: Grid,
    bench: Workbench,
    run: RunDirectory,
    *,
    resume: bool = False,
    memories: MemoryFolder | None = None,
    watcher: Watcher | None = None,
    workers: int = 0,
    keys: Keys | None = None,
    journaled: bool = False,
    nodes: Mapping[int, int] | None = None,
    stack: int = 1,
) -> dict[str, Any]:
    """Run every round that is still to run, write the adapter and the summary, return the summary.

    ``memories`` holds what clients keep between rounds, where nodes leave it; ``workers``, ``keys`` and ``stack`` are
    those of Clients. ``journaled`` has a round that is run again go on with the replies that it had, except where
    clients keep memories, which one that is not asked again would lack. ``nodes`` tells which node is whose, where
    the engine knows and they hold the plan; else all are asked to join.

    Raises:
        ResumeError: the run directory's checkpoint is damaged or of other parts.
        RunError: a round got too few replies, or another server has taken over; the last checkpoint stands.
    """
    watcher, fence = watcher or Watcher(), claim(run.path, bench.experiment.output.fence)
    begun = resumed(run, bench, memories) if resume else None
    _say_started(watcher, bench, run, begun)
    found = find_clients(grid, bench, fence=fence.token, keys=keys) if nodes is None else nodes
    clients = Clients(grid=grid, nodes=found, workers=workers, keys=keys, stack=stack)
    federation = Federation.of(clients, bench, run, fence, watcher, journaled=journaled, fresh=begun is None)
    state = _through(federation, run, begun or _round_zero(federation, run))
    with fence.held():
        return _conclude(federation, run, state)


def _say_started(watcher: Watcher, bench: Workbench, run: RunDirectory, begun: Checkpoint | None) -> None:
    shares = bench.shares.summary(bench.splits.label_names)
    run.write_partition(shares)
    watcher.started(
        bench.experiment,
        num_clients=bench.shares.num_clients,
        num_parameters=bench.adapted.initial.num_elements,
        partition_summary=shares,
        first_round=begun.round_number + 1 if begun else 1,
    )


def _through(federation: Federation, run: RunDirectory, begun: Checkpoint) -> State:
    """Run the rounds that are still to run, each committed before the next begins."""
    bench, rounds, state = federation.bench, federation.bench.experiment.rounds, begun.state
    federation.score.add(run.records() if federation.score.rest else ())
    for round_number in range(begun.round_number + 1, rounds.num_rounds + 1):
        state, record = run_round(federation, state, round_number)
        with federation.fence.held():
            run.append(record)
            if round_number % rounds.checkpoint_every == 0 or round_number == rounds.num_rounds:
                mark = run.ledger.mark()
                checkpoints.save(run.checkpoints, checkpoint_of(bench, state, round_number, ledger=mark))
                if federation.journal is not None:
                    federation.journal.forget(round_number)
        federation.score.add([record])
        federation.watcher.round_finished(record)
    return state


def run_round(federation: Federation, state: State, round_number: int) -> tuple[State, RoundRecord]:
    """Train one cohort, aggregate, evaluate.

    Raises:
        RunError: fewer replies than rounds.min_clients, the aggregate is not finite, or another server has taken over.
    """
    keeper = federation.guard
    cohort = cohort_of(federation.bench, len(federation.clients.nodes), round_number)
    with federation.fence.held():
        page = federation.journal.page(round_number, inputs_of(state)) if federation.journal else None
        asking = _exchange(federation, state, round_number, page)
        epsilon = keeper.charge(state, cohort, round_number, asking.kept) if keeper else None
    began = time.monotonic()
    tally = _train(federation, state, cohort, asking)
    total = _total(federation, state, cohort, tally, round_number)
    trained = time.monotonic()
    before, state = state, _applied(federation, state, total, tally, round_number)
    aggregated = time.monotonic()
    metrics, client_metrics = _evaluate(federation, state, sorted(tally.clients), tally, round_number)
    done = time.monotonic()
    return state, RoundRecord(
        round=round_number,
        clients=tuple(sorted(tally.clients)),
        failures=tuple(tally.failures),
        train_loss=tally.train_loss,
        metrics=metrics,
        client_metrics=client_metrics,
        epsilon=epsilon,
        clip=keeper.clip(before) if keeper and keeper.central else None,
        bytes_up=tally.bytes_up,
        bytes_down=tally.bytes_down,
        bytes_up_fp32=4 * tally.floats_up,
        bytes_down_fp32=4 * tally.floats_down,
        bytes_up_bound=tally.bytes_up_bound,
        worker_processes=federation.clients.workers,
        stack=federation.clients.stack,
        seconds={"clients": trained - began, "aggregate": aggregated - trained, "evaluate": done - aggregated},
    )


def _train(federation: Federation, state: State, cohort: Sequence[int], asking: Exchange) -> Tally:
    """Stream the cohort's updates into one running total; spares, asked beside them, fill up for those that fail.

    Worker processes are asked for spares when they are needed: none is ever late there.
    """
    bench, keeper, strategy = federation.bench, federation.guard, federation.bench.strategy
    tally, round_number = Tally(total=strategy.start()), asking.round_number
    spares = spares_of(bench, len(federation.clients.nodes), round_number)
    awake, further = (federation.score.awake(each, round_number) for each in (cohort, spares))
    groups = (awake, further) if federation.clients.apart else ((*awake, *further),)
    for reply in chain(federation.score.resting(cohort, round_number), *(asking.train(group) for group in groups)):
        tally.clients.append(reply.client)
        tally.count(reply)
        if reply.update is not None and isinstance(reply.header, Update):
            with phase("aggregate"):
                limited = _limited(keeper, reply.update, state, tally)
                update = strategy.prepare(bench.adapted.attached.slots, state, limited)
                tally.total = strategy.accumulate(tally.total, update)
            tally.add(reply, reply.header, reply.update.num_examples)
        federation.watcher.client_finished(
            round_number, reply.client, ok=reply.failure is None, bytes_up=reply.bytes_up
        )
        if tally.num_updates == len(cohort):
            break
    return tally


def _limited(keeper: Guard | None, update: ClientUpdate, state: State, tally: Tally) -> ClientUpdate:
    """Return the update as privacy lets it count."""
    if keeper is None:
        return update
    tally.num_within += keeper.within(update, state)
    return keeper.limited(update, state)


def _total(federation: Federation, state: State, cohort: Iterable[int], tally: Tally, round_number: int) -> Any:
    """Return what is aggregated, of enough replies, with noise where privacy wants it here.

    A cohort that was drawn empty is a release of noise alone, as the accountant has it.
    """
    bench, keeper = federation.bench, federation.guard
    if cohort or keeper is None or not keeper.central:
        least = bench.experiment.rounds.min_clients
        tally.require(round_number, min_clients=least, least_updates=bench.strategy.least_updates())
    return keeper.noised(tally.total, state, round_number) if keeper else tally.total


@timed("aggregate")
def _applied(federation: Federation, before: State, total: Any, tally: Tally, round_number: int) -> State:
    """Return the state after the round; an aggregate or a residual that is not finite is an error."""
    bench, keeper = federation.bench, federation.guard
    after = bench.retracted(bench.strategy.apply(bench.adapted.attached.slots, before, total))
    state = bench.settled(before, after, round_number=round_number, clients=tally.answered)
    state = keeper.renewed(state, before, tally, round_number) if keeper else state
    state.adapter.require_finite(where=f"global adapter after round {round_number}")
    bench.residuals(state).require_finite(where=f"residual after round {round_number}")
    return state


def _evaluate(
    federation: Federation, state: State, cohort: Sequence[int], tally: Tally, round_number: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return metrics on the held-out data, and on the clients' own where asked for."""
    bench, settings = federation.bench, federation.bench.experiment.evaluate
    if round_number % settings.every and round_number != bench.experiment.rounds.num_rounds:
        return {}, {}
    asking = _exchange(federation, state, round_number) if settings.on_clients else None
    on_clients = measured(asking, cohort, tally) if asking is not None else {}
    return bench.evaluate(state.adapter, bench.residuals(state)), on_clients


def _exchange(federation: Federation, state: State, round_number: int, page: Page | None = None) -> Exchange:
    return Exchange(
        grid=federation.clients.grid,
        bench=federation.bench,
        nodes=federation.clients.nodes,
        state=state,
        round_number=round_number,
        workers=federation.clients.workers,
        stack=federation.clients.stack,
        fence=federation.fence.token,
        keys=federation.clients.keys,
        page=page,
        run=federation.identity,
    )


def _round_zero(federation: Federation, run: RunDirectory) -> Checkpoint:
    """Evaluate the adapter as it is attached, and commit it as round 0."""
    bench = federation.bench
    first = bench.strategy.init(bench.adapted.attached.slots, bench.adapted.initial)
    state = bench.settled(first, first, round_number=0)
    began = time.monotonic()
    metrics = bench.evaluate(state.adapter, bench.residuals(state))
    record = RoundRecord(round=0, metrics=metrics, seconds={"evaluate": time.monotonic() - began})
    begun = checkpoint_of(bench, state, 0)
    with federation.fence.held():
        run.append(record)
        checkpoints.save(run.checkpoints, begun)
    federation.watcher.round_finished(record)
    return begun


def _conclude(federation: Federation, run: RunDirectory, state: State) -> dict[str, Any]:
    """Write the adapter, the summary and the page."""
    bench = federation.bench
    charged, mechanism = run.ledger, bench.mechanism
    privacy = mechanism.statement(charged.charged_rounds(mechanism.privacy)) if mechanism else None
    summary = summarise(bench.experiment, run.records(), adapter_digest=state.adapter.digest(), privacy=privacy)
    residuals = bench.residuals(state)
    write_adapter(run.adapter, bench.experiment, bench.adapted, state.adapter, residuals=residuals, summary=summary)
    run.write_page(report_page(bench.experiment, run.records(), run.partition(), summary))
    run.write_summary(summary)
    federation.watcher.finished(summary)
    return summary
