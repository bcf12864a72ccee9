"""A manifest on the disk: read strictly, and only with the signature of the operator whose key the node has."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpeft.cli import app
from fedpeft.deploy.identity import write_operator_key
from fedpeft.errors import ConfigError, InputError, PinError
from fedpeft.pinning.gate import Gate, gate_at
from fedpeft.pinning.manifest import open_text, parse, to_toml
from fedpeft.pinning.signed import read_pins, write_signed
from fedpeft.privacy.own import Lifetime
from tests.conftest import tiny
from tests.pinning.manifests import PINNED


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    write_operator_key(tmp_path / "operator.key", [tmp_path / "operator.pub"])
    return tmp_path / "operator.key", tmp_path / "operator.pub"


def test_what_is_written_and_signed_is_read_back(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    write_signed(tmp_path / "pins.toml", PINNED, keys[0])
    found = read_pins(tmp_path / "pins.toml", keys[1])
    assert found is not None
    assert (found.adapter.max_rank, found.rounds.least_cohort) == (2, 2)
    assert parse(to_toml(found), where="again") == found


@pytest.mark.parametrize("name", ["pins.toml", "pins.toml.sig"])
def test_one_byte_more_is_another_manifest(tmp_path: Path, keys: tuple[Path, Path], name: str) -> None:
    write_signed(tmp_path / "pins.toml", PINNED, keys[0])
    path = tmp_path / name
    path.write_text("00" + path.read_text() if name.endswith("sig") else path.read_text() + "\n")
    with pytest.raises(InputError, match="not signed by the key of"):
        read_pins(tmp_path / "pins.toml", keys[1])


def test_another_operators_word_is_not_taken(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    write_operator_key(tmp_path / "other.key", [tmp_path / "other.pub"])
    write_signed(tmp_path / "pins.toml", PINNED, tmp_path / "other.key")
    with pytest.raises(InputError, match="not signed by the key of"):
        read_pins(tmp_path / "pins.toml", keys[1])
    (tmp_path / "pins.toml.sig").unlink()
    with pytest.raises(InputError, match="its signature cannot be read"):
        read_pins(tmp_path / "pins.toml", keys[1])
    assert read_pins(tmp_path / "pins.toml") is not None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_rounds = 3", "max_round = 3", "rounds.max_round: Extra inputs are not permitted"),
        ("max_rounds = 3", 'max_rounds = "3"', "rounds.max_rounds: Input should be a valid integer"),
        ("max_clip = 1.0", "max_clip = 0", "privacy.max_clip: Input should be greater than 0"),
        ("max_epsilon = 8.0\n", "", "give least_noise or max_epsilon"),
        ("lifetime_delta = 1e-5\n", "", "lifetime_epsilon and lifetime_delta belong together"),
        ("max_local_steps = 3", "", "give max_local_steps or max_local_epochs"),
        ("0" * 64, "main", "base_hash: String should match pattern"),
        ('strategies = ["fedavg"]', "strategies = []", "strategies: Tuple should have at least 1 item"),
        ("[model]", "model = 1\n[x]", "not valid TOML|Input should be|Extra inputs"),
    ],
)
def test_what_is_not_understood_is_refused(old: str, new: str, words: str) -> None:
    assert old in PINNED
    with pytest.raises(InputError, match=words):
        parse(PINNED.replace(old, new), where="pins.toml")


def test_nothing_is_pinned_only_where_the_manifest_says_so(tmp_path: Path) -> None:
    assert parse(open_text(), where="open") is None
    for text in ("", "anything = true", open_text() + "codecs = []"):
        with pytest.raises(InputError):
            parse(text, where="pins.toml")
    (tmp_path / "open.toml").write_text(open_text())
    assert gate_at(tmp_path / "open.toml", None) is None


def test_a_pinned_lifetime_budget_is_the_nodes_and_is_not_given_twice() -> None:
    pins = parse(PINNED, where="pins.toml")
    assert pins is not None
    assert Gate(pins).lifetime(None) == Lifetime(epsilon=16.0, delta=1e-5)
    with pytest.raises(ConfigError, match=re.escape("is pinned, and given again")):
        Gate(pins).lifetime(Lifetime(epsilon=1.0, delta=1e-5))


def test_the_command_prints_the_manifest_that_an_experiment_is_just_within(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(tiny().to_toml())
    done = CliRunner().invoke(app, ["deploy", "pins", str(tmp_path / "e.toml")])
    assert done.exit_code == 0, done.output
    pins = parse(done.output, where="printed")
    assert pins is not None
    assert (pins.adapter.max_rank, pins.rounds.max_rounds, pins.train.max_local_steps) == (2, 3, 3)
    Gate(pins).require_experiment(tiny())
    with pytest.raises(PinError, match=r"pin rounds\.max_rounds: asked 4, at most 3; nothing was read"):
        Gate(pins).require_experiment(tiny(rounds={"num_rounds": 4}))
