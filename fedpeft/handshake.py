"""The client's half of the handshake: take the server's plan, once, and say who lives here."""

from functools import lru_cache

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedpeft import __version__
from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.errors import WireError
from fedpeft.rounds.memory import forget
from fedpeft.wire.message import Join, Joined, expect
from fedpeft.wire.payload import pack, unpack

__all__ = ["client_of", "enrol", "join", "plan_of"]


def join(message: Message, context: Context, experiment: Experiment) -> RecordDict:
    """Take the server's plan, once, and say which client lives here.

    Raises:
        WireError: the server runs another experiment, or the plan is damaged.
    """
    header, body = unpack(message.content, Join)
    expect(
        header,
        job=header.envelope.job,
        round_number=0,
        config_hash=experiment.hash,
        plan_hash=_plan_hash(body),
        base_hash=None,
        codec=experiment.codec.words,
    )
    enrol(context.state, header.envelope.job, body)
    versions = {"fedpeft": __version__}
    return pack(Joined(envelope=header.envelope, client=client_of(context), versions=versions), b"")


@lru_cache(maxsize=1)
def _plan_hash(plan: bytes) -> str:
    """Read a plan once where many nodes share a process: it may hold tensors as large as the base model's."""
    return Plan.from_bytes(plan).hash


def enrol(state: RecordDict, job: str, plan: bytes) -> None:
    """Put into a node's record what it holds once it has joined, and no memory of another job."""
    forget(state)
    state["run"] = ConfigRecord({"job": job, "plan": plan})


def client_of(context: Context) -> int:
    """Return which client lives here."""
    return int(context.node_config["partition-id"])


def plan_of(context: Context) -> bytes:
    """Return the plan as it was handed out.

    Raises:
        WireError: there is none, or it is damaged.
    """
    if "run" not in context.state:
        raise WireError(f"client {client_of(context)} has not joined this run; it holds no plan")
    plan = context.state["run"]["plan"]
    if not isinstance(plan, bytes):
        raise WireError(f"client {client_of(context)} holds a damaged plan; restart the node")
    return plan
