"""What an experiment file may say. Each plug-in's own options live beside the plug-in."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Literal, final

import tomli_w
from pydantic import Field

from fedpeft.config.base import Frozen
from fedpeft.config.choice import Choice, Choices
from fedpeft.config.privacy import Privacy

__all__ = [
    "WITHOUT_EFFECT",
    "Calibration",
    "Compute",
    "Evaluate",
    "Experiment",
    "Feedback",
    "Output",
    "Pretrain",
    "Rounds",
    "Simulation",
    "Train",
]

WITHOUT_EFFECT = ("output", "simulation")
"""Tables that do not change the result."""
_LATER = {"compute": ("stack", "quantization", "gradient_checkpointing", "cache_frozen", "cache_bytes")}
"""Keys that came after runs had begun: at their defaults they are left out of the hash, so that these go on."""


@final
class Train(Frozen):
    """Local training on one client in one round."""

    local_epochs: int = Field(default=1, ge=1)
    """Passes over the client's data a round; must be left out when local_steps is set."""
    local_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps a round instead of whole epochs."""
    batch_size: int = Field(default=32, ge=1)
    """Examples a step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Fresh on each client in each round."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """At the first round."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls over the rounds."""
    warmup_rounds: int = Field(default=0, ge=0)
    """Rounds over which the learning rate rises linearly to its value."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of sgd; must be 0 for adamw."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled for adamw, L2 for sgd."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Clip the batch gradient to this L2 norm (no privacy claim)."""


@final
class Rounds(Frozen):
    """The federation's rounds."""

    num_rounds: int = Field(default=10, ge=1)
    """Rounds in all."""
    clients_per_round: int | None = Field(default=None, ge=1)
    """Clients drawn a round, uniformly; all when unset."""
    sampling: Literal["fixed", "poisson"] = "fixed"
    """fixed: exactly clients_per_round; poisson: each client on its own, so many on average."""
    min_clients: int = Field(default=1, ge=1)
    """Fewer replies than this stop the run."""
    timeout_seconds: float = Field(default=3600.0, gt=0)
    """A reply later than this is a failure."""
    deadline_seconds: float | None = Field(default=None, gt=0)
    """All replies of a round are taken within this time of its first message; unset: each has timeout_seconds."""
    rest_rounds: int = Field(default=0, ge=0)
    """Rounds for which a client that let two deadlines in a row pass is not asked; 0: it is asked each time."""
    spare_clients: int = Field(default=0, ge=0)
    """Further clients drawn and asked a round; their replies count, in client order, where others failed."""
    max_update_norm: float | None = Field(default=None, gt=0)
    """A reply whose tensors together have a larger L2 norm is refused; unset: none is."""
    max_product_norm: float | None = Field(default=None, gt=0)
    """The same of what it does to the weights that A/B pairs adapt (Frobenius norm of the change of scale * B @ A)."""
    max_examples: int | None = Field(default=None, ge=1)
    """A client counts for no more examples than this, however many it says it holds; unset: for as many as it says."""
    window: int = Field(default=16, ge=1)
    """Messages under way at once; bounds the server's memory."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Rounds between checkpoints; the last round always has one."""


@final
class Evaluate(Frozen):
    """When and where the global adapter is evaluated."""

    every: int = Field(default=1, ge=1)
    """Rounds between evaluations on the held-out data; rounds 0 and last are always evaluated."""
    batch_size: int = Field(default=64, ge=1)
    """Examples a forward pass."""
    on_clients: bool = False
    """Also evaluate on each drawn client's own held-out share."""
    client_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of a client's examples kept from its training when on_clients is set."""
    max_examples: int | None = Field(default=None, ge=1)
    """Evaluate on the first so many held-out examples only."""


@final
class Feedback(Frozen):
    """Error feedback: what a lossy codec leaves out of one round is added to the next."""

    up: bool = False
    """On what clients send; each keeps what was left out of its own changes."""
    down: bool = False
    """On what the server sends; it goes on from what clients decode, and keeps what that lacks."""


@final
class Compute(Frozen):
    """How the arithmetic is done."""

    num_threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Threads of one process; part of what makes a run reproducible to the bit."""
    stack: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Clients of a round trained side by side in one pass of the frozen model, in one process (inline engine); 1: each
    alone. Equal up to rounding, but for dropout's draws, so it is part of what makes a run reproducible to the bit.

    auto: as many as are fastest in a short measurement at the start and fit into memory; the run keeps the number.
    """
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """bfloat16: forward and backward by autocast, adapters and optimizer in float32; for hardware that has it.

    auto: whichever a short measurement finds faster when ``fedpeft simulate`` begins; the run is then of that one.
    """
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda|cuda:\d+)$", examples=["cpu", "cuda", "cuda:0"])
    """Where tensors live."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Bits of the frozen base's linear layers, by bitsandbytes (``pip install 'fedpeft[quantization]'``)."""
    gradient_checkpointing: bool = False
    """Compute each block's activations again when going backward: less memory, about a third more time."""
    cache_frozen: bool = False
    """Compute once, and keep on this machine, what enters the lowest block the adapter touches; no dropout below it."""
    cache_bytes: int = Field(default=4 * 2**30, ge=1)
    """Room on the disk for that; a set of examples that would need more is computed with each batch."""


@final
class Pretrain(Frozen):
    """Full training of the base model on public data before the federation starts, done once and cached."""

    num_steps: int = Field(default=200, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=32, ge=1)
    """Examples a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW."""


@final
class Calibration(Frozen):
    """What an adapter that is planned from data sees before the federation: public examples, on the server alone."""

    num_examples: int = Field(default=256, ge=1)
    """The first so many of the public training examples; all where there are fewer."""
    batch_size: int = Field(default=16, ge=1)
    """Examples a forward pass; without effect on the plan, up to rounding."""


@final
class Output(Frozen):
    """Where results go; no part of the experiment's identity."""

    directory: str | None = None
    """The run directory; ``runs/<name>`` when unset."""
    if_exists: Literal["refuse", "resume", "overwrite"] = "refuse"
    """What to do when the run directory already holds a run."""
    fence: int = Field(default=0, ge=0)
    """The fencing token of the server that may commit there, set by what starts that server; 0: it takes a new one."""


@final
class Simulation(Frozen):
    """How ``fedpeft simulate`` uses this machine; no part of the experiment's identity, and without effect on it."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Processes that train a round's clients side by side, each with compute.num_threads threads; 1 starts none.

    auto: as many as the cores, the free memory and the round's clients allow.
    """
    gpus_per_client: float | None = Field(default=None, gt=0, examples=[0.25, 1, 2])
    """With --engine flower and compute.device = "cuda": what Ray sets aside for one client at a time, a share of a GPU
    (0.25: four clients side by side on each) or whole ones; 1 when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment, whole and checked."""

    name: str
    seed: int
    model: Choice
    data: Choice
    partition: Choice
    task: Choice
    adapter: Choice
    strategy: Choice
    codec: Choices
    """Of what clients send; of several, each but the last says which entries it keeps for the next."""
    codec_down: Choices
    """Of what the server sends: the adapter, or with a codec that leaves entries out how it changed."""
    feedback: Feedback
    train: Train
    rounds: Rounds
    evaluate: Evaluate
    compute: Compute
    output: Output
    simulation: Simulation = field(default_factory=Simulation)
    pretrain: Pretrain | None = None
    pretrain_data: Choice | None = None
    calibration: Calibration | None = None
    calibration_data: Choice | None = None
    privacy: Privacy | None = None

    def table(self) -> dict[str, Any]:
        """Return the experiment as it would stand in a file, every default written out."""
        parts = {each.name: vars(self)[each.name] for each in fields(self) if vars(self)[each.name] is not None}
        return {name: _plain(value) for name, value in parts.items()}

    def to_toml(self) -> str:
        """Return a file that loads as this very experiment, every default that TOML can say written out."""
        return tomli_w.dumps(_without_none(self.table()))

    @cached_property
    def hash(self) -> str:
        """The sha256 (hex) of everything that defines the result; name, and where and how it runs, are left out."""
        table = {name: value for name, value in self.table().items() if name not in ("name", *WITHOUT_EFFECT)}
        table["compute"] = _without_later("compute", self.compute)
        canonical = json.dumps(table, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _without_later(name: str, table: Frozen) -> dict[str, Any]:
    defaults = {key: type(table).model_fields[key].default for key in _LATER[name]}
    said = table.model_dump(mode="json").items()
    return {key: value for key, value in said if key not in defaults or value != defaults[key]}


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is unset: TOML cannot say None."""
    return {name: _toml(value) for name, value in table.items() if value is not None}


def _toml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_none(value)
    return [_toml(each) for each in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Choice | Choices):
        return value.table()
    return value.model_dump(mode="json") if isinstance(value, Frozen) else value
