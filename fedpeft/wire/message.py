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
class Envelope:
    """What every header holds."""

    job: str
    round_number: int
    """From 1; 0 for the handshake and the evaluation before the first round."""
    config_hash: str
    plan_hash: str
    base_hash: str
    codec: tuple[str, ...]
    """How the body is packed: the chain's stages in order, in the experiment's words."""
    manifest: tuple[Spec, ...] = ()
    """The body's tensors, in order; empty when the body is no tensors."""
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

    @property
    def manifest_hash(self) -> str:
        """The sha256 (hex) of the manifest."""
        return manifest_hash(self.manifest)

    @property
    def num_elements(self) -> int:
        """Number of scalars in the manifest."""
        return sum(spec.num_elements for spec in self.manifest)


@final
@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """What the server asks of one client in one round; the body is the adapter, and what rebuilds a residual."""

    envelope: Envelope
    client: int
    kind: Literal["train", "evaluate"]
    directive: Directive = field(default_factory=Directive)

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
        expect_packed(header, codec=codec, manifest=manifest)


def expect_packed(header: Header, *, codec: Sequence[str], manifest: Sequence[Spec]) -> None:
    """Refuse a header whose body is packed in another way, or is of other tensors.

    Raises:
        RefusedError: names what came, and what was expected.
    """
    other = "server" if isinstance(header, Broadcast | Join) else "client"
    _same_codec(header, codec, f"the {other} packs tensors in another way")
    _same_manifest(header, manifest)


def _same(header: Header, code: RefusalCode, name: str, got: object, want: object, cause: str) -> None:
    if want is not None and got != want:
        raise RefusedError(code, f"{header}: {name} {_short(got)} is not this run's {_short(want)}; {cause}")


def _same_codec(header: Header, codec: Sequence[str], cause: str) -> None:
    got, want = (_printable(" then ".join(names), length=100) for names in (header.envelope.codec, codec))
    if header.envelope.codec != tuple(codec):
        raise RefusedError("manifest", f"{header}: codec {got or 'missing'} is not this run's {want}; {cause}")


def _same_manifest(header: Header, manifest: Sequence[Spec]) -> None:
    try:
        require_manifest(header.envelope.manifest, manifest, where=f"{header}: manifest")
    except TensorMismatchError as error:
        raise RefusedError("manifest", _printable(str(error), length=300)) from error


def _short(value: object) -> str:
    return _printable(str(value), length=12)


def _printable(text: str, *, length: int) -> str:
    """Return what a sender chose, cut and on one line, safe to stand in a log."""
    shown = text if len(text) <= length else f"{text[:length]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in shown)
