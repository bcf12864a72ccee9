"""Overrides from the command line: TOML where it is TOML, a bare word otherwise."""

from collections.abc import Callable

import pytest

from fedpeft.config import Experiment
from fedpeft.errors import ConfigError

Make = Callable[..., Experiment]


def test_values_are_toml(make: Make) -> None:
    experiment = make(
        "",
        "seed=7",
        "train.learning_rate=1e-4",
        "train . local_steps = 5 # a comment",
        "evaluate.on_clients=true",
        'output.directory="runs/a b"',
        "adapter.targets=['q', \"k\"]",
        "adapter.inner={depth = 2}",
    )

    assert (experiment.seed, experiment.train.learning_rate, experiment.train.local_steps) == (7, 1e-4, 5)
    assert (experiment.evaluate.on_clients, experiment.output.directory) == (True, "runs/a b")
    assert vars(experiment.adapter.options)["targets"] == ("q", "k")
    assert vars(experiment.adapter.options)["inner"].depth == 2


@pytest.mark.parametrize(
    "word", ["runs/x", "facebook/opt-125m", "hf://a/b@main", "./a b.txt", "sgd", "1.2.3", "8x", "a=b"]
)
def test_a_bare_word_is_a_string(make: Make, word: str) -> None:
    assert make("", f"output.directory={word}").output.directory == word


def test_an_inline_table_replaces_a_whole_part(make: Make) -> None:
    experiment = make("[train]\nbatch_size = 4\n", 'codec={name="bfloat16"}', "train={local_steps = 3}")

    assert experiment.codec.names == ("bfloat16",)
    assert (experiment.train.local_steps, experiment.train.batch_size) == (3, 32)


def test_the_last_override_wins_and_is_checked_like_the_file(make: Make) -> None:
    assert make("seed = 1\n", "seed=2", "seed=3").seed == 3
    with pytest.raises(ConfigError, match=r'train.batch_size = "8x": expected an integer >= 1'):
        make("", "train.batch_size=8x")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "expected key=value or table.key=value"),
        ("=3", "expected key=value"),
        ("seed=", "expected key=value"),
        ("seed= ", "expected key=value"),
        ("train..batch_size=3", "expected key=value"),
        (".seed=3", "expected key=value"),
        ("seed.deep=3", "'seed' is not a table"),
        ("adapter.targets=[1,", "the value is not valid TOML"),
        ("adapter.targets='a", "the value is not valid TOML"),
        ("adapter.inner={depth 2}", "the value is not valid TOML"),
        ("seed=3\nname='x'", "expected one value on one line"),
        ("output.directory=a\nb", "the value is not valid TOML"),
    ],
)
def test_a_malformed_override_is_refused_by_name(make: Make, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make("seed = 1\n", override)

    assert str(caught.value).startswith(f"override {override!r}: ")
    assert words in str(caught.value)
