"""Everything that can be wrong with an experiment file is said, all at once, with place, value and bound."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.config import Experiment, load, parse
from fedpeft.errors import ConfigError, InputError

Make = Callable[..., Experiment]

MISTAKES = {
    # unknown keys, at every level, with the nearest name
    'modle = "x"': "modle: unknown key; did you mean 'model'?",
    "zzz = 1": "zzz: unknown key; known: name, seed, model, data, partition, task, adapter, strategy, codec",
    "[train]\nbatchsize = 1": "train.batchsize: unknown key; did you mean 'batch_size'?",
    "[codec]\nname = 'none'\nlevel = 3": "codec.level: unknown key; none is known",
    "+adapter.rnak = 1": "adapter.rnak: unknown key; did you mean 'rank'?",
    "+adapter.inner.detph = 1": "adapter.inner.detph: unknown key; did you mean 'depth'?",
    # wrong types: nothing is converted quietly
    '[train]\nbatch_size = "8"': 'train.batch_size = "8": expected an integer >= 1',
    "[train]\nbatch_size = true": "train.batch_size = true: expected an integer >= 1",
    "[train]\nbatch_size = 8.0": "train.batch_size = 8.0: expected an integer >= 1",
    "[train]\nbatch_size = [8]": "train.batch_size = [8]: expected an integer >= 1",
    '[train]\nlearning_rate = "1e-3"': 'train.learning_rate = "1e-3": expected a number > 0',
    "[train]\nlearning_rate = false": "train.learning_rate = false: expected a number > 0",
    "[train]\nlearning_rate = nan": "train.learning_rate = NaN: expected a finite number > 0",
    "[train]\nlearning_rate = inf": "train.learning_rate = Infinity: expected a finite number > 0",
    "[evaluate]\non_clients = 1": "evaluate.on_clients = 1: expected true or false",
    "[output]\ndirectory = 3": "output.directory = 3: expected a string",
    "[output]\ndirectory = 2026-01-01": "output: holds a date or a time, and no option takes one; quote it",
    "+adapter.targets = ['a', 1]": "adapter.targets.1 = 1: expected a string",
    "+adapter.targets = 'a'": 'adapter.targets = "a": expected an array with each element a string',
    "+adapter.betas = [0.9]": "adapter.betas = [0.9]: expected an array of length 2",
    "+adapter.betas = [0.9, 1, 2]": "adapter.betas = [0.9, 1, 2]: expected an array of length 2",
    "+adapter.inner = 3": "adapter.inner = 3: expected a table",
    "train = 3": "train = 3: expected a table, [train]",
    'seed = "7"': "seed = '7': expected an integer, 0 <= seed < 2**63",
    "seed = true": "seed = True: expected an integer, 0 <= seed < 2**63",
    # bounds, and all that is wrong with a value in its words
    "seed = -1": "seed = -1: expected an integer, 0 <= seed < 2**63",
    "name = 'a/b'": "name = 'a/b': expected up to 100 letters, digits, '.', '_' or '-'",
    "[train]\nbatch_size = 0": "train.batch_size = 0: expected an integer >= 1",
    "[train]\nmomentum = 1": "train.momentum = 1: expected a number >= 0 and < 1",
    "[train]\nmax_grad_norm = 0.0": "train.max_grad_norm = 0.0: expected a number > 0",
    "[compute]\nnum_threads = 0": 'compute.num_threads = 0: expected an integer >= 1 or "auto"',
    "[simulation]\nworkers = 0": 'simulation.workers = 0: expected an integer >= 1 or "auto"',
    '[compute]\nnum_threads = "all"': 'compute.num_threads = "all": expected an integer >= 1 or "auto"',
    '[compute]\ndevice = "gpu"': 'compute.device = "gpu": expected a string such as cpu, cuda, cuda:0',
    '[train]\noptimizer = "adam"': 'train.optimizer = "adam": expected "adamw" or "sgd"; did you mean "adamw"?',
    "+adapter.rank = -8": "adapter.rank = -8: expected an integer >= 1",
    "+adapter.rank = 13": "adapter.rank = 13: 13 brings bad luck; choose another",
    "+adapter.fraction = 1.0": "adapter.fraction = 1.0: expected a number > 0 and < 1",
    "+adapter.label = ''": 'adapter.label = "": expected a string of length >= 1',
    "+adapter.inner = {depth = 9}": "adapter.inner.depth = 9: expected an integer >= 1 and <= 4",
    # plug-ins
    "[codec]\nname = 'bfloat61'": "codec.name: no codec 'bfloat61'; did you mean 'bfloat16'?",
    "[codec]\nname = 3": "codec = {'name': 3}: expected a table with a name, [codec] and name = ...; known: bfloat16",
    "+codec = []": "codec = []: expected at least one table, [[codec]] and name = ...",
    "+codec = [{name = 'none'}, 3]": "codec.1 = 3: expected a table with a name, [codec.1] and name = ...",
    "+codec = [{name = 'top_k', density = 2}]": "codec.0.density = 2: expected a number >= 0 and <= 1",
    "+codec_down = [{name = 'nnoe'}]": "codec_down.0.name: no codec 'nnoe'; did you mean 'none'?",
    "[codec]\nname = 'compeft'\nalpha = 2.0": "codec: alpha has no effect with scale = 'mean_abs'",
    "[codec]\nname = 'compeft'\nscale = 'dp_norm'": "codec: norm belongs to scale = 'dp_norm': give both or neither",
    "codec = 'none'": "codec = 'none': expected a table with a name, [codec] and name = ...; known: bfloat16",
    "[codec]\nname = 'acme_config.lost'": "codec.name: no codec 'acme_config.lost': there is no such module",
    "[codec]\nname = 'acme_config.needy'": "codec.path: missing; expected a string",
    # settings that contradict each other, or would have no effect
    "[train]\nmomentum = 0.9": "train.momentum = 0.9: has no effect with optimizer 'adamw'; remove it or use 'sgd'",
    "[train]\nlocal_steps = 5\nlocal_epochs = 2": "train.local_epochs = 2: has no effect with train.local_steps",
    "[train]\nwarmup_rounds = 10": "train.warmup_rounds = 10: expected < rounds.num_rounds = 10",
    "[rounds]\nclients_per_round = 2\nmin_clients = 3": "rounds.min_clients = 3: expected <= rounds.clients_per_round",
    "[pretrain]\nnum_steps = 1": "pretrain and pretrain_data: give both tables or neither",
    "[calibration]\nnum_examples = 1": "calibration and calibration_data: give both tables or neither",
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.items())
def test_a_mistake_is_said_in_one_line(make: Make, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make("", text[1:]) if text.startswith("+") else make(text)

    lines = str(caught.value).splitlines()
    assert len(lines) == 1, lines
    assert "toy.toml: " + words in lines[0]


def test_all_mistakes_are_said_at_once(make: Make) -> None:
    text = 'seed = -1\nmodle = 1\n[train]\nbatch_size = 0\nmomentum = 2\n[rounds]\nnum_rounds = "3"\nround = 1\n'

    with pytest.raises(ConfigError) as caught:
        make(text, "adapter.rank=0", "task.name=acme_config.gone")

    lines = [line.split("toy.toml: ")[1] for line in str(caught.value).splitlines()]
    places = ["modle", "seed", "task.name", "adapter.rank", "train.batch_size", "train.momentum", "rounds.num_rounds"]
    assert [line.split(":")[0].split(" = ")[0] for line in lines] == [*places, "rounds.round"]


def test_tables_that_must_be_there_are_asked_for_with_what_exists() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"codec": {}, "strategy": {"name": "acme_config.part"}})

    text = str(caught.value)
    for name in ("model", "data", "partition", "task", "adapter"):
        assert f"experiment: {name}: missing table; add [{name}] with a name" in text
    assert "experiment: codec = {}: expected a table with a name, [codec] and name = ...; known: bfloat16" in text
    assert "experiment: pretrain" not in text


def test_a_plugins_own_import_error_comes_through(make: Make, tmp_path: Path) -> None:
    (tmp_path / "site" / "acme_config" / "broken.py").write_text("import a_library_that_is_not_installed\n")

    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_installed"):
        make("", "adapter.name=acme_config.broken")
    assert "a_library_that_is_not_installed" not in sys.modules


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    broken, latin = tmp_path / "broken.toml", tmp_path / "latin.toml"
    broken.write_text("seed = \n")
    latin.write_bytes(b'name = "\xff"\n')

    for path, words in [
        (tmp_path / "gone.toml", r"gone.toml: cannot be read: No such file"),
        (tmp_path, r"cannot be read: Is a directory"),
        (broken, r"broken.toml: not valid TOML: Invalid value \(at line 1, column 8\)"),
        (latin, r"latin.toml: not valid TOML: .*utf-8"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            load(path)
        assert isinstance(caught.value, InputError)
        assert caught.value.exit_code == 2


def test_a_file_gives_its_name_unless_it_says_another(make: Make) -> None:
    assert make(name="my_run").name == "my_run"
    assert make("name = 'other'\n", name="my_run").name == "other"
