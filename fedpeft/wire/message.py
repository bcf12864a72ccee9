"""What server and clients say to each other: frozen headers, and the refusal of one that belongs to another run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from fedpeft.errors import RefusalCode, RefusedError, TensorMismatchError
from fedpeft.strategies.base import Directive
from fedpeft.tensors import Spec, manifest_hash, require_manifest

__all__ = [
    "VERSION",
    "Broadcast",
    "Carried",
    "Changes",
    "Envelope",
    "Evaluated",
    "Header",
    "Join",
    "Joined",
    "Update",
    "expect",
    "expect_packed",
]

VERSION = 1
"""Of the format; raised when an older receiver must not read on."""


@final
@dataclass(frozen=True, kw_only=True)
class Carried:
    """What tensors a body carries: the receiver knows them, so they are named by a hash and do not travel."""

    manifest_hash: str
    """The sha256 (hex) of all of them."""
    num_elements: int
    """Number of scalars."""
    told: tuple[Spec, ...] = ()
    """Of them the last ones, whose shapes the receiver cannot know."""

    @classmethod
    def of(cls, manifest: Sequence[Spec], *, told: Sequence[Spec] = ()) -> "Carried":
        """Return what stands for a manifest."""
        num_elements = sum(spec.num_elements for spec in manifest)
        return cls(manifest_hash=manifest_hash(manifest), num_elements=num_elements, told=tuple(told))


@final
@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What every header holds."""

    job: str
    round_number: int
    """From 1; 0 for the handshake and the evaluation before the first round."""
    config_hash: str
    plan_hash: str
    base_hash: str
    codec: tuple[str, ...]
    """How the body is packed: the chain's stages in order, each with its parameters, in the experiment's words."""
    carries: Carried = field(default_factory=lambda: Carried.of(()))
    """The body's tensors; none when the body is no tensors."""
    privacy: str = ""
    """What the sender claims to protect its data by; empty where it claims nothing."""
    fence: int = 0
    """The fencing token of the server that asks; a reply gives it back."""
    run: bytes = b""
    """Of a question: which run of the job asks; another one begins anew."""
    answers: bytes = b""
    """Of a reply to a broadcast: the sha256 of that one's body."""
    payload: bytes = field(default=b"", repr=False, compare=False)
    """The sha256 of the body it was read with."""
    source: bytes = field(default=b"", repr=False, compare=False)
    """The protobuf bytes it was read from, so that fields of a newer sender survive being passed on."""


@final
@dataclass(frozen=True, kw_only=True)
class Changes:
    """Which adapter a client has once it has read the body."""

    since: int | None
    """The adapter that the body's first part is a change of; None when the body is the whole one."""
    until: int
    """The adapter that comes out: that after so many rounds; 0 is the plan's."""
    adapter_hash: str
    """Of it: sha256 (hex) over manifest and bits."""


@final
@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """What the server asks of one client in one round; the body is the adapter, and what rebuilds a residual."""

    envelope: Envelope
    client: int
    kind: Literal["train", "evaluate"]
    directive: Directive = field(default_factory=Directive)
    changes: Changes | None = None
    """Where the run sends changes of the adapter; None where it sends adapters."""

    def __str__(self) -> str:
        return f"broadcast to client {self.client}"


@final
@dataclass(frozen=True, kw_only=True)
class Update:
    """What one client trained; the body is the delta."""

    envelope: Envelope
    client: int
    num_examples: int
    """Examples the client holds."""
    num_steps: int
    """Optimizer steps taken."""
    train_loss: float | None
    """Mean over the steps; None where privacy forbids to tell, and then the counts are 1 and 0 for everyone."""
    seconds: float
    """Of training, wall clock."""

    def __str__(self) -> str:
        return f"update of client {self.client}"


@final
@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What one client measured on its own held-out examples; no body."""

    envelope: Envelope
    client: int
    num_examples: int
    """Held-out examples; may be 0."""
    sums: Mapping[str, float]
    """Metric -> sum over the examples."""

    def __str__(self) -> str:
        return f"evaluation of client {self.client}"


@final
@dataclass(frozen=True, kw_only=True)
class Join:
    """Server to node, before the first round; the body is the plan's bytes."""

    envelope: Envelope

    def __str__(self) -> str:
        return "join"


@final
@dataclass(frozen=True, kw_only=True)
class Joined:
    """The node's answer: who it is and what it runs; no body."""

    envelope: Envelope
    client: int
    versions: Mapping[str, str]
    """Library -> version."""

    def __str__(self) -> str:
        return f"joined of client {self.client}"


Header = Broadcast | Update | Evaluated | Join | Joined


def expect(
    header: Header,
    *,
    job: str,
    round_number: int,
    config_hash: str,
    plan_hash: str | None,
    base_hash: str | None,
    codec: Sequence[str] | None,
    manifest: Sequence[Spec] = (),
    told: Sequence[Spec] = (),
    privacy: str = "",
    client: int | None = None,
    fence: int | None = None,
    answers: bytes | None = None,
) -> None:
    """Refuse a header that was not meant for the receiver, or disagrees with it. None is what it cannot know yet;
    without a codec, how the body is packed and of what is not looked at.

    Raises:
        RefusedError: names the field, what came, what was expected, and the likely cause.
    """
    got, other = header.envelope, "server" if isinstance(header, Broadcast | Join) else "client"
    _same(header, "job", "job", got.job, job, f"the {other} works for another run")
    _same(header, "round", "round", got.round_number, round_number, "a late or repeated message")
    _same(header, "fence", "fencing token", got.fence, fence, "it answers a server that another has taken over from")
    if client is not None and not isinstance(header, Join):
        _same(header, "client", "client", header.client, client, "it was meant for, or sent by, somebody else")
    _same(header, "job", "config hash", got.config_hash, config_hash, f"the {other} runs another experiment file")
    _same(header, "base", "plan hash", got.plan_hash, plan_hash, f"the {other} holds another plan; join again")
    _same(header, "base", "base hash", got.base_hash, base_hash, f"the {other} holds another base model")
    if answers is not None:
        _same(header, "base", "answer", got.answers.hex(), answers.hex(), "it answers another broadcast")
    if codec is not None:
        expect_packed(header, codec=codec, manifest=manifest, told=told, privacy=privacy)


def expect_packed(
    header: Header,
    *,
    codec: Sequence[str],
    manifest: Sequence[Spec],
    told: Sequence[Spec] = (),
    privacy: str = "",
) -> None:
    """Refuse a header whose body is packed in another way, is of other tensors or protected by something else.

    Raises:
        RefusedError: names what came, and what was expected.
    """
    other = "server" if isinstance(header, Broadcast | Join) else "client"
    _same_codec(header, codec, f"the {other} packs tensors in another way")
    _same_privacy(header, privacy)
    _same_manifest(header, manifest, told)


def _same(header: Header, code: RefusalCode, name: str, got: object, want: object, cause: str) -> None:
    if want is not None and got != want:
        raise RefusedError(code, f"{header}: {name} {_short(got)} is not this run's {_short(want)}; {cause}")


def _same_codec(header: Header, codec: Sequence[str], cause: str) -> None:
    got, want = (_printable(" then ".join(names), length=100) for names in (header.envelope.codec, codec))
    if header.envelope.codec != tuple(codec):
        raise RefusedError("manifest", f"{header}: codec {got or 'missing'} is not this run's {want}; {cause}")


def _same_privacy(header: Header, privacy: str) -> None:
    got, want = (_printable(claim or "nothing", length=200) for claim in (header.envelope.privacy, privacy))
    if header.envelope.privacy != privacy:
        raise RefusedError("job", f"{header}: claims {got} for privacy, and this run has {want}")


def _same_manifest(header: Header, manifest: Sequence[Spec], told: Sequence[Spec]) -> None:
    got, want = header.envelope.carries, Carried.of(manifest, told=told)
    try:
        require_manifest(got.told, want.told, where=f"{header}: manifest")
    except TensorMismatchError as error:
        raise RefusedError("manifest", _printable(str(error), length=300)) from error
    if got != want:
        raise RefusedError(
            "manifest",
            f"{header}: carries tensors of manifest {_short(got.manifest_hash)}, {got.num_elements} scalars, expected "
            f"{_short(want.manifest_hash)}, {want.num_elements}; names, shapes or order differ",
        )


def _short(value: object) -> str:
    return _printable(str(value), length=12)


def _printable(text: str, *, length: int) -> str:
    """Return what a sender chose, cut and on one line, safe to stand in a log."""
    shown = text if len(text) <= length else f"{text[:length]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in shown)
