"""Which node holds which client: asked once, when the plan is handed out."""

import logging
import time

from flwr.app import Message
from flwr.serverapp import Grid

from fedpeft.config import Experiment
from fedpeft.errors import RunError, WireError
from fedpeft.report.text import one_line
from fedpeft.rounds.collect import in_order
from fedpeft.training.workbench import Workbench
from fedpeft.wire.message import Envelope, Join, Joined, expect
from fedpeft.wire.payload import pack, unpack
from fedpeft.wire.signature import Keys

__all__ = ["find_clients", "job_name", "job_of"]

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 300.0
_MAX_REASON = 500


def job_name(bench: Workbench) -> str:
    """Return what every message of this run is labelled with."""
    return job_of(bench.experiment)


def job_of(experiment: Experiment) -> str:
    """Return the label of an experiment's runs."""
    return f"{experiment.name}-{experiment.hash[:16]}"


def find_clients(
    grid: Grid, bench: Workbench, *, patience: float = _PATIENCE_SECONDS, fence: int = 0, keys: Keys | None = None
) -> dict[int, int]:
    """Hand the plan to every node and return client -> node, complete; with keys each has signed that it is there.

    Raises:
        RunError: nodes are missing, refuse the plan, or claim the same client; names them.
    """
    num_clients = bench.shares.num_clients
    nodes = _wait_for_nodes(grid, num_clients, patience)
    record = pack(_join(bench, fence), bench.adapted.plan.to_bytes())
    outgoing = ((node, grid.create_message(record, "query.join", node, "0", patience)) for node in nodes)
    found: dict[int, int] = {}
    for node, reply in in_order(grid, outgoing, window=bench.experiment.rounds.window, timeout=patience):
        client = _client_of(bench, node, reply, fence, keys)
        if client in found or not 0 <= client < num_clients:
            raise RunError(f"node {node} says it is client {client}: taken already, or not below {num_clients}")
        found[client] = node
    if len(found) < num_clients:
        missing = sorted(set(range(num_clients)) - set(found))
        raise RunError(f"{len(missing)} of {num_clients} clients have no node, the first is client {missing[0]}")
    return dict(sorted(found.items()))


def _wait_for_nodes(grid: Grid, num_clients: int, patience: float) -> list[int]:
    deadline, seen = time.monotonic() + patience, -1
    while len(nodes := sorted(grid.get_node_ids())) < num_clients:
        if time.monotonic() > deadline:
            raise RunError(
                f"only {len(nodes)} of {num_clients} nodes are there after {patience:.0f} s; "
                "start one node a client (num-supernodes in a simulation)"
            )
        if len(nodes) != seen:
            seen = len(nodes)
            _LOG.warning("%d of %d nodes are there; waiting up to %.0f s for the others", seen, num_clients, patience)
        time.sleep(_POLL_SECONDS)
    return nodes


def _client_of(bench: Workbench, node: int, reply: Message | None, fence: int, keys: Keys | None) -> int:
    if reply is None:
        raise RunError(f"node {node} did not answer the handshake in time")
    if reply.has_error():
        raise RunError(
            f"node {node} refused the plan: {one_line(reply.error.reason or str(reply.error.code))[:_MAX_REASON]}"
        )
    try:
        return _joined(bench, reply, fence, keys)
    except WireError as error:
        raise RunError(f"node {node} gave no valid answer to the handshake: {error}") from error


def _joined(bench: Workbench, reply: Message, fence: int, keys: Keys | None) -> int:
    header, _ = unpack(reply.content, Joined)
    join = _join(bench, fence).envelope
    expect(
        header,
        job=join.job,
        round_number=0,
        config_hash=join.config_hash,
        plan_hash=join.plan_hash,
        base_hash=None,
        codec=join.codec,
        fence=fence,
    )
    if keys is not None:
        keys.require(header.client, reply.content)
    return header.client


def _join(bench: Workbench, fence: int = 0) -> Join:
    return Join(
        envelope=Envelope(
            job=job_name(bench),
            round_number=0,
            config_hash=bench.experiment.hash,
            plan_hash=bench.adapted.plan.hash,
            base_hash=bench.adapted.base_hash,
            codec=bench.experiment.codec.words,
            fence=fence,
        )
    )
