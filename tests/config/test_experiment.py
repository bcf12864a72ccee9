"""An experiment is a value: frozen, and equal experiments have equal hashes."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from pydantic import ValidationError

from fedpeft.config import Compute, Evaluate, Experiment, Output, Pretrain, Rounds, Train, parse

Make = Callable[..., Experiment]

SAME = {
    "the order of keys": "[train]\nmomentum = 0.0\nbatch_size = 32\n[rounds]\n",
    "defaults written out": "seed = 0\n[codec]\nname = 'none'\n[train]\nlocal_epochs = 1\n[compute]\ndevice = 'cpu'\n",
    "an integer for a number": "[rounds]\ntimeout_seconds = 3600\n",
    "where output goes": "[output]\ndirectory = '/elsewhere'\n",
    "how many processes run it": "[simulation]\nworkers = 3\n",
    "as many processes as fit": "[simulation]\nworkers = 'auto'\n",
    "the run's name": "name = 'renamed'\n",
}
OTHER = [
    "seed=1",
    "train.batch_size=31",
    "train.learning_rate=0.0010000000000000002",
    "train.local_steps=1",
    "rounds.clients_per_round=3",
    "evaluate.every=2",
    "compute.num_threads=1",
    "codec.name=bfloat16",
    "codec_down.name=bfloat16",
    "codec=[{name='top_k'}, {name='int8'}]",
    "codec=[{name='top_k'}, {name='int4'}]",
    "adapter.rank=4",
    "adapter.targets=['value', 'query']",
    "adapter.inner.depth=2",
    "task.rank=4",
]


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_what_does_not_change_the_result_does_not_change_the_hash(make: Make, text: str) -> None:
    assert make(text).hash == make().hash


def test_each_other_value_has_a_hash_of_its_own(make: Make) -> None:
    hashes = {make("", override).hash for override in OTHER} | {make().hash}

    assert len(hashes) == len(OTHER) + 1
    assert all(len(one) == 64 for one in hashes)


def test_the_table_with_every_default_gives_the_same_experiment(make: Make) -> None:
    pretrain = 'pretrain_data.name="acme_config.part"'
    chain = "codec=[{name='top_k', density=0.1}, {name='int8'}]"
    changed = make("", "train.local_steps=3", "adapter.rank=4", pretrain, "pretrain.num_steps=1", chain)
    for experiment in (make(), changed):
        for table in (json.loads(json.dumps(experiment.table())), tomllib.loads(experiment.to_toml())):
            again = parse(table)
            assert (again, again.hash) == (experiment, experiment.hash)


def test_one_codec_alone_in_an_array_is_that_codec(make: Make) -> None:
    assert make("", "codec=[{name='int8'}]").hash == make("", "codec.name=int8").hash


def test_nothing_can_be_changed(make: Make) -> None:
    experiment: Any = make()
    with pytest.raises(FrozenInstanceError):
        experiment.seed = 1
    with pytest.raises(FrozenInstanceError):
        experiment.adapter.name = "x"
    for options in (experiment.train, experiment.adapter.options):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(options, next(iter(type(options).model_fields)), 3)


@pytest.mark.parametrize("table", [Compute, Evaluate, Output, Pretrain, Rounds, Train])
def test_every_setting_has_a_sentence_for_the_reference_page(table: type[Train]) -> None:
    assert table.__doc__
    for name, field in table.model_fields.items():
        assert (field.description or "").endswith("."), f"{table.__name__}.{name}"
