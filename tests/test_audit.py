"""The audit holds where the code is right, and fails where noise is missing; membership against a count of pairs.

Noise is secure here, so that no seed repeats it: least bounds lie five standard deviations below the mean (of the claim
0.88 +- 0.032 at 4,000 trials, 0.76 +- 0.064 at 1,000), and one is above the claim in one audit of 10,000.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedpeft.audit
import fedpeft.rounds.guard
import fedpeft.training.distributed
from fedpeft.audit import Effort, audit, membership
from fedpeft.cli import app
from fedpeft.codecs import none as lossless
from fedpeft.codecs.base import NOTHING, Codec, Common
from fedpeft.engines.inline import simulate
from fedpeft.errors import ConfigError
from fedpeft.rounds.guard import Guard
from fedpeft.tensors import Tensors
from tests.conftest import tiny

EXAMPLE = {"unit": "example", "noise_multiplier": 1.0, "delta": 1e-5, "clip": 1.0, "sample_rate": 0.1}
CLIENT = {"unit": "client", "noise_multiplier": 1.0, "delta": 1e-5, "clip": 0.5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "example": (EXAMPLE, {}),
    "per_layer": ({**EXAMPLE, "clipping": "per_layer"}, {}),
    "client": (CLIENT, {}),
    "adaptive": ({**CLIENT, "adaptive": {}}, {}),
    "distributed": ({**CLIENT, "placement": "distributed"}, {"rounds": {"num_rounds": 2, "min_clients": 2}}),
    "dylora": (CLIENT, {"strategy": {"name": "dylora", "weighting": "uniform"}}),
}


def attacked(case: str, effort: Effort, **privacy: Any) -> dict[str, Any]:
    table, changes = CASES[case]
    uniform = {"name": "fedavg", "weighting": "uniform"}
    made = tiny(None, **{"strategy": uniform, "rounds": {"num_rounds": 2}, **changes}, privacy={**table, **privacy})
    return audit(made, effort)


@pytest.mark.parametrize("case", CASES)
def test_what_one_release_shows_is_most_of_the_claim_and_not_more(case: str) -> None:
    found = attacked(case, Effort(trials=4000, canaries=200))
    single, whole = found["one_release"], found["one_run"]
    assert found["holds"]
    assert single["claimed"] == pytest.approx(4.377, abs=0.03)
    assert 0.7 * single["claimed"] <= single["lower_bound"] <= single["claimed"]
    assert 0 <= whole["lower_bound"] <= whole["claimed"]
    assert whole["guesses"] == 40


@pytest.mark.parametrize(
    ("case", "module"),
    [
        ("client", fedpeft.rounds.guard),
        ("adaptive", fedpeft.rounds.guard),
        ("distributed", fedpeft.training.distributed),
    ],
)
def test_half_the_noise_on_clients_updates_is_found(case: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.gaussian

    def short(specs: Any, std: float, randomness: Any) -> Any:
        return original(specs, std / 2, randomness)

    monkeypatch.setattr(module, "gaussian", short)
    found = attacked(case, Effort(trials=1500, canaries=200))
    assert found["one_release"]["lower_bound"] > found["one_release"]["claimed"]
    assert not found["holds"]


class Louder(Codec):
    """Whatever a client sent arrives a hundred times as large."""

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        return lossless.make(lossless.Options()).encode(tensors, common)

    def decode(self, data: bytes, manifest: Any, common: Common = NOTHING) -> Tensors:
        return lossless.make(lossless.Options()).decode(data, manifest, common) * 100

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        return 99 * tensors.norm()


ORDERS = {
    "example": "clip, noise, compress",
    "client": "compress, clip, noise",
    "distributed": "clip, noise, compress",
}


@pytest.mark.parametrize("case", ORDERS)
def test_what_a_codec_makes_of_an_update_changes_no_sensitivity(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canaries go through the codec; the order that is stated is the one in which it does no harm."""
    made: Any = fedpeft.audit.assemble
    monkeypatch.setattr(fedpeft.audit, "assemble", lambda experiment: replace(made(experiment), codec=Louder()))

    found = attacked(case, Effort(trials=1000, canaries=200))

    assert found["claim"]["order"] == ORDERS[case]
    assert found["holds"]
    assert found["one_release"]["lower_bound"] > 0.4 * found["one_release"]["claimed"]


def test_a_clip_before_the_codec_alone_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were what arrives not cut, a codec could make it as large as it likes."""
    made: Any = fedpeft.audit.assemble
    monkeypatch.setattr(fedpeft.audit, "assemble", lambda experiment: replace(made(experiment), codec=Louder()))
    monkeypatch.setattr(Guard, "limited", lambda self, update, state: replace(update, delta=update.delta * 1e-6))

    assert not attacked("client", Effort(trials=500, canaries=200))["holds"]


@pytest.mark.parametrize("codec", ["int8", "compeft"])
def test_a_lossy_codec_in_the_way_is_audited_too(codec: str) -> None:
    table, _ = CASES["client"]
    uniform = {"name": "fedavg", "weighting": "uniform"}
    made = tiny(None, strategy=uniform, rounds={"num_rounds": 1}, privacy=table, codec={"name": codec})
    found = audit(made, Effort(trials=1000, canaries=200))
    assert found["holds"]
    assert found["one_release"]["lower_bound"] > 0.4 * found["one_release"]["claimed"]


def weaker(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let example-level training have less noise than it says."""
    original = fedpeft.training.private._hide

    def short(parameters: Any, private: Any) -> None:
        weak = replace(private.mechanism, noise_multiplier=private.mechanism.noise_multiplier * factor)
        original(parameters, replace(private, mechanism=weak))

    monkeypatch.setattr(fedpeft.training.private, "_hide", short)


def test_half_the_noise_on_examples_gradients_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    weaker(monkeypatch, 0.5)
    assert not attacked("example", Effort(trials=3000, canaries=200))["holds"]


@pytest.mark.parametrize("case", ["example", "client"])
def test_one_run_without_noise_is_found(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a claim below what so many canaries can show; the one run alone must refute it."""
    weaker(monkeypatch, 1e-6)

    def silent(specs: Any, *_: Any, **__: Any) -> Tensors:
        return Tensors((spec.name, torch.zeros(spec.shape)) for spec in specs)

    monkeypatch.setattr(fedpeft.rounds.guard, "gaussian", silent)
    noise = {"noise_multiplier": 8.0, **({"sample_rate": 1.0} if case == "example" else {})}
    run = attacked(case, Effort(trials=1000, canaries=400), **noise)["one_run"]
    assert run["claimed"] < run["largest_it_could_find"] == run["lower_bound"]
    assert run["correct"] == run["guesses"]


def test_without_a_privacy_table_there_is_nothing_to_audit() -> None:
    with pytest.raises(ConfigError, match=r"no \[privacy\] table"):
        audit(tiny(None), Effort())


def test_more_canaries_than_entries_are_refused() -> None:
    with pytest.raises(ConfigError, match="canaries = 100000: expected at most"):
        attacked("client", Effort(trials=1000, canaries=100_000))


def test_membership_is_the_share_of_pairs_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tiny(tmp_path / "run", rounds={"num_rounds": 1}))
    real = membership(tmp_path / "run")
    assert 0.35 < real["auc"] < 0.65  # a round of three steps learns nobody by heart
    assert real["members"] > 20

    parts = iter([np.array([1.0]), np.array([2.0]), np.array([]), np.array([2.0, 3.0])])
    monkeypatch.setattr(fedpeft.audit, "_losses", lambda *_: next(parts))
    assert membership(tmp_path / "run") == {"auc": 3.5 / 4, "members": 2, "others": 2}


def test_the_command_prints_both_sides_and_fails_where_they_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    simulate(tiny(run, strategy={"name": "fedavg", "weighting": "uniform"}, rounds={"num_rounds": 1}, privacy=EXAMPLE))
    effort = ["--trials", "1000", "--canaries", "100"]
    done = CliRunner().invoke(app, ["privacy", "audit", str(run), *effort])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert set(told) == {"claim", "one_release", "one_run", "holds", "membership"}

    monkeypatch.setattr(fedpeft.audit, "releases_bound", lambda **_: 99.0)
    done = CliRunner().invoke(app, ["privacy", "audit", str(run / "config.toml"), *effort])
    assert done.exit_code != 0
    assert '"holds": false' in done.output
