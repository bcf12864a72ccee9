"""States of frozen lower blocks, kept: against the model without them, in every architecture, whole federations too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedpeft import config
from fedpeft.adapters.base import Attached
from fedpeft.config import Experiment
from fedpeft.engines.inline import simulate
from fedpeft.errors import ConfigError, RunError, UnsupportedError
from fedpeft.models.blocks import Blocks, blocks_of
from fedpeft.privacy.per_sample import by_hooks, by_vmap
from fedpeft.report.export import read_slots
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.tasks.given import STATES, Given
from fedpeft.tensors import Tensors
from fedpeft.training.frozen import Use
from fedpeft.training.lower import find_lower
from fedpeft.training.state_file import WithStates, read_states, write_states
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import tiny
from tests.e2e.test_inline import digest, lines
from tests.e2e.test_resume import StoppedError, stop_at

TARGETS = {
    "bert": ["layer.2.attention.self.query", "layer.2.output.dense"],
    "gpt2": ["h.2.attn.c_attn", "h.2.mlp.c_proj"],
    "llama": ["layers.2.self_attn.q_proj", "layers.2.mlp.down_proj"],
    "vit": ["layers.2.attention.q_proj", "layers.2.mlp.fc2"],
}
CASES = [
    ("bert", "sequence_classification"),
    ("gpt2", "sequence_classification"),
    ("llama", "sequence_classification"),
    ("gpt2", "causal_lm"),
    ("llama", "causal_lm"),
    ("vit", "image_classification"),
]
every = pytest.mark.parametrize(("architecture", "task"), CASES)
OFTEN = Use(a_turn=1, turns=2)
PRIVACY: dict[str, Any] = {
    "unit": "example",
    "sample_rate": 0.2,
    "clip": 1.0,
    "noise_multiplier": 1.0,
    "delta": 1e-3,
    "noise": "reproducible",
}


def experiment(
    folder: Path, architecture: str = "bert", task: str = "", *, on: bool = True, **changes: Any
) -> Experiment:
    """Return a federation of three blocks, of which the last is adapted; texts are of many lengths."""
    task = task or ("image_classification" if architecture == "vit" else "sequence_classification")
    table: dict[str, Any] = {
        "model": {"num_layers": 3, "dropout": 0.0},
        "adapter": {"target_modules": TARGETS[architecture]},
        "train": {"local_steps": 3, "batch_size": 5, "learning_rate": 0.05},
        "rounds": {"num_rounds": 2},
        "evaluate": {"batch_size": 7},
        "compute": {"cache_frozen": on},
    }
    if architecture == "vit":
        table["partition"] = {"num_clients": 16}
    else:
        table["model"] = {"name": "tiny", "architecture": architecture, "hidden_size": 16, **table["model"]}
        table["task"] = {"name": task, **({"text": "plain"} if task == "causal_lm" else {})}
        table["data"] = {"name": "table", "path": str(_texts(folder)), "text": "t"}
        if task != "causal_lm":
            table["data"]["label"] = "l"
    for key, value in changes.items():
        table[key] = {**table.get(key, {}), **value} if isinstance(value, dict) else value
    return tiny(folder / ("on" if on else "off"), **table)


def _texts(folder: Path) -> Path:
    rows = [f"{'very ' * (number % 4)}{word} {number},{word}" for number in range(16) for word in ("up", "down")]
    (folder / "texts.csv").write_text("\n".join(["t,l", *rows]))
    return folder / "texts.csv"


def benches(folder: Path, *case: str, **changes: Any) -> tuple[Workbench, Workbench]:
    """Return the same federation with states and without, at parameters that have all of the adapter count."""
    both = tuple(assemble(experiment(folder, *case, on=on, **changes)) for on in (True, False))
    for bench in both:
        _move(bench.adapted.attached)
    return both  # type: ignore[return-value]


def _move(attached: Attached) -> None:
    generator = torch.Generator().manual_seed(0)
    start = attached.read()
    attached.write(
        Tensors((name, value + 0.1 * torch.randn(value.shape, generator=generator)) for name, value in start.items())
    )


def logits(bench: Workbench, rows: Any) -> Tensor:
    """Return what the model answers to a batch of rows; of tokens that are no padding alone."""
    task, found = bench.adapted.task, []
    handle = bench.adapted.attached.model.register_forward_hook(lambda *given: found.append(given[2].logits))
    batch = task.collate(rows)
    task.losses(bench.adapted.attached.model, batch)
    handle.remove()
    kept: Tensor = found[0]
    return kept[batch["attention_mask"].bool()] if kept.dim() == 3 else kept


def gradients(bench: Workbench, rows: Any) -> dict[str, Tensor]:
    parameters = bench.adapted.attached.parameters()
    losses = bench.adapted.task.losses(bench.adapted.attached.model, bench.adapted.task.collate(rows))
    return dict(zip(parameters, torch.autograd.grad(losses.mean(), list(parameters.values())), strict=True))


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@every
def test_logits_losses_and_gradients_are_those_of_the_whole_model(tmp_path: Path, architecture: str, task: str) -> None:
    on, off = benches(tmp_path, architecture, task)
    with_states, _ = on.client_examples(1)
    plain, _ = off.client_examples(1)
    assert isinstance(with_states, WithStates)

    for places in ([0, 3, 4], [5, 1], list(range(len(plain)))):  # of other lengths than they were computed in
        kept, rows = [with_states[place] for place in places], [plain[place] for place in places]
        close(logits(on, kept), logits(off, rows))
        found, expected = gradients(on, kept), gradients(off, rows)
        for name, value in expected.items():
            assert float(value.abs().max()) > 0
            close(found[name], value)
    assert on.score(with_states) == pytest.approx(off.score(plain), rel=1e-6)


@every
def test_only_the_blocks_above_are_computed(tmp_path: Path, architecture: str, task: str) -> None:
    bench = assemble(experiment(tmp_path, architecture, task))
    found = blocks_of(bench.adapted.attached.model)
    rows, _ = bench.client_examples(0)
    calls = _count(found)

    bench.score(rows)
    assert calls == {0: 0, 1: 0, 2: -(-len(rows) // 7)}

    bench.score([{name: value for name, value in row.items() if name != STATES} for row in rows])
    assert set(calls.values()) != {0}
    assert calls[0] > 0, "a row without states needs the whole model"


def inner_layer(block: nn.Module) -> nn.Module:
    """Return a layer within a block that each call of it calls once: a block that passes its states on calls none."""
    return next(each for each in block.modules() if type(each).__name__.endswith(("LayerNorm", "RMSNorm")))


def _count(found: Blocks) -> dict[int, int]:
    """Count the calls of each block."""
    calls = dict.fromkeys(range(len(found.blocks)), 0)
    for index, block in enumerate(found.blocks):

        def seen(*_: Any, index: int = index) -> None:
            calls[index] += 1

        inner_layer(block).register_forward_hook(seen)
    return calls


@pytest.mark.parametrize("way", [by_hooks, by_vmap])
def test_gradients_of_single_examples_are_those_of_the_whole_model(tmp_path: Path, way: Any) -> None:
    on, off = benches(tmp_path, "bert")
    found, expected = (
        way(
            bench.adapted.attached.model,
            bench.adapted.task.collate(bench.client_examples(0)[0][:4]),
            bench.adapted.task.losses,
        )
        for bench in (on, off)
    )
    assert STATES in on.client_examples(0)[0][0]
    for name, value in expected.items():
        close(found[name], value)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        (("bert",), {}),
        (("bert",), {"strategy": {"name": "fedex_lora"}}),
        (("bert",), {"adapter": {"name": "bottleneck", "size": 4, "target_modules": ["layer.2.output.dense"]}}),
        (("bert",), {"privacy": PRIVACY, "strategy": {"name": "fedavg", "weighting": "uniform"}}),
        (("gpt2", "causal_lm"), {"rounds": {"num_rounds": 2, "clients_per_round": 2}}),
        (("vit",), {"evaluate": {"on_clients": True, "batch_size": 7}, "rounds": {"num_rounds": 3}}),
    ],
    ids=["bert", "residual", "bottleneck", "privacy", "gpt2", "clients"],
)
def test_a_federation_ends_at_the_same_adapter(tmp_path: Path, case: tuple[str, ...], changes: dict[str, Any]) -> None:
    adapters, rounds = [], []
    for on in (True, False):
        simulate(experiment(tmp_path, *case, on=on, **changes))
        run = tmp_path / ("on" if on else "off")
        adapters.append(read_slots(run / "adapter"))
        rounds.append(lines(run))
    for name, value in adapters[1].items():
        assert float((adapters[0][name] - value).abs().max()) < 1e-5
    for one, two in zip(*rounds, strict=True):
        assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-5)


def test_bfloat16_keeps_what_enters_the_block_to_the_bit(tmp_path: Path) -> None:
    bench = assemble(experiment(tmp_path, compute={"precision": "bfloat16"}))
    rows, _ = bench.client_examples(0)
    plain = [{name: value for name, value in row.items() if name != STATES} for row in rows][:7]
    assert bench.score(rows[:7]) == bench.score(plain)


def test_dropout_is_off_below_and_on_above(tmp_path: Path) -> None:
    bench = assemble(experiment(tmp_path, model={"dropout": 0.5}))
    rows, _ = bench.client_examples(0)
    plain = [{name: value for name, value in row.items() if name != STATES} for row in rows]

    def losses(some: Any, seed: int = 1) -> Tensor:
        bench.adapted.attached.model.train()
        torch.manual_seed(seed)
        with torch.no_grad():
            found: Tensor = bench.adapted.task.losses(bench.adapted.attached.model, bench.adapted.task.collate(some))
        return found

    assert float((losses(rows) - losses(plain)).abs().max()) < 1e-5
    assert float((losses(rows) - losses(rows, seed=2)).abs().max()) > 1e-3


def test_off_is_the_plain_task_and_the_plain_rows(tmp_path: Path) -> None:
    bench = assemble(experiment(tmp_path, on=False))
    assert bench.frozen is None
    assert not isinstance(bench.adapted.task, Given)
    assert STATES not in bench.client_examples(0)[0][0]


def test_nothing_of_the_model_is_changed(tmp_path: Path) -> None:
    bench = assemble(experiment(tmp_path))
    model = bench.adapted.attached.model
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    names = [name for name, _ in model.named_parameters()]
    bench.score(bench.client_examples(0)[0])
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert [name for name, _ in model.named_parameters()] == names


def test_many_workers_and_a_resumed_run_give_the_same_bits(tmp_path: Path) -> None:
    def run(name: str, workers: int = 1, **output: str) -> Experiment:
        out = {"directory": str(tmp_path / name), **output}
        return experiment(tmp_path, simulation={"workers": workers}, output=out, rounds={"num_rounds": 3})

    simulate(run("one"))
    simulate(run("two", 2))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, checkpoints, "save", 2, before=False)
        with pytest.raises(StoppedError):
            simulate(run("resumed"))
    simulate(run("resumed", if_exists="resume"))
    assert digest(tmp_path / "one") == digest(tmp_path / "two") == digest(tmp_path / "resumed")


def test_short_room_changes_no_bit_where_whole_passes_are_made(tmp_path: Path) -> None:
    many = {"local_steps": 12}  # of 5 examples each, so that each client goes through all it holds
    whole = assemble(experiment(tmp_path, train=many))
    rows = [whole.client_examples(client)[0] for client in range(3)]
    assert whole.frozen is not None
    room = whole.frozen.num_bytes * 2 // 3

    short = assemble(experiment(tmp_path, compute={"cache_bytes": room}, train=many))
    assert short.frozen is not None
    for _ in range(2):
        for client, expected in enumerate(rows):
            found = short.client_examples(client)[0]
            assert short.frozen.num_bytes <= room
            assert all(torch.equal(one[STATES], two[STATES]) for one, two in zip(found, expected, strict=True))


def test_what_does_not_fit_is_computed_with_each_batch(tmp_path: Path) -> None:
    on, off = (
        experiment(tmp_path, on=on, **({"compute": {"cache_frozen": True, "cache_bytes": 999}} if on else {}))
        for on in (True, False)
    )
    bench = assemble(on)
    assert STATES not in bench.client_examples(0)[0][0]
    assert bench.frozen is not None
    assert bench.frozen.num_bytes == 0
    simulate(on)
    simulate(off)
    assert read_slots(tmp_path / "on" / "adapter").digest() == read_slots(tmp_path / "off" / "adapter").digest()


def test_states_that_would_hardly_be_used_are_not_made(tmp_path: Path) -> None:
    bench = assemble(experiment(tmp_path))
    assert bench.frozen is not None
    rows, _ = assemble(experiment(tmp_path, on=False)).client_examples(0)
    assert bench.frozen.joined("rare", rows, Use(a_turn=0.5, turns=1.5)) is rows
    assert bench.frozen.joined("partly", rows, Use(a_turn=0.5, turns=4), sets=10**9) is rows
    assert isinstance(bench.frozen.joined("often", rows, OFTEN), WithStates)


def test_a_file_thrown_away_by_another_process_is_made_again(tmp_path: Path) -> None:
    bench = assemble(experiment(tmp_path))
    assert bench.frozen is not None
    bench.frozen.share(tmp_path / "states", sharers=2)
    first, _ = bench.client_examples(0)
    for file in (tmp_path / "states").iterdir():
        file.unlink()
    again, _ = bench.client_examples(0)
    assert all(torch.equal(one[STATES], two[STATES]) for one, two in zip(first, again, strict=True))


def test_a_file_that_cannot_be_written_ends_the_run_with_the_key(tmp_path: Path) -> None:
    bench = assemble(experiment(tmp_path))
    assert bench.frozen is not None
    bench.frozen.share(tmp_path / "states", sharers=2)
    (tmp_path / "states").rmdir()
    (tmp_path / "states").write_text("not a folder")
    with pytest.raises((RunError, NotADirectoryError), match=r"cache_bytes|states"):
        bench.client_examples(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_gives_back_its_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    states = torch.randn(3, 4, 5).to(dtype)
    rows = [{"x": torch.tensor(index)} for index in range(3)]
    size = write_states(tmp_path / "f", iter([(states[:2], [4, 1]), (states[2:], [3])]), most=10**6, num_rows=3)
    found = read_states(tmp_path / "f", rows)
    assert size == (tmp_path / "f").stat().st_size
    assert [len(row[STATES]) for row in found] == [4, 1, 3]
    assert torch.equal(found[2][STATES], states[2, :3])
    assert torch.equal(found[-3:][1][STATES], states[1, :1])
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(RunError, match="3 examples, expected 2"):
        read_states(tmp_path / "f", rows[:2])


def test_a_set_that_seems_too_large_is_given_up_early(tmp_path: Path) -> None:
    asked = []

    def chunks() -> Any:
        for number in range(100):
            asked.append(number)
            yield torch.zeros(1, 4, 5), [4]

    assert write_states(tmp_path / "f", chunks(), most=99 * 80, num_rows=100) is None
    assert asked == [0]
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "first block": ({"adapter": {"target_modules": ["query"]}}, r"layer\.0\..*worth keeping"),
    "embeddings": ({"adapter": {"name": "prompt_tuning"}}, "virtual_tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_low_in_the_model_is_refused(tmp_path: Path, name: str) -> None:
    changes, words = REFUSED[name]
    made = experiment(tmp_path)
    table = {
        **made.table(),
        "adapter": changes["adapter"] if "name" in changes["adapter"] else {"name": "lora", **changes["adapter"]},
    }
    with pytest.raises(UnsupportedError, match=words):
        assemble(config.parse({key: value for key, value in table.items() if value is not None}))


def test_an_architecture_without_a_layout_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="Sequential follows no layout"):
        find_lower(Attached(model=nn.Sequential(nn.Linear(2, 2)), bound=()))


def test_blocks_that_pass_on_more_than_states_are_found_out(tmp_path: Path) -> None:
    bench = assemble(experiment(tmp_path))
    found = blocks_of(bench.adapted.attached.model)
    last = found.blocks[2]
    found.blocks[0].register_forward_hook(lambda *given: vars(last).update(extra=100 * given[2][..., 0].mean().item()))
    last.register_forward_hook(lambda *given: given[2] + vars(last).pop("extra", 0.0) * torch.arange(16))
    with pytest.raises(UnsupportedError, match="blocks pass on more"):
        bench.rehearse()


def test_room_without_the_switch_is_an_idle_setting() -> None:
    with pytest.raises(ConfigError, match=r"cache_bytes = 5: has no effect without compute\.cache_frozen"):
        tiny(compute={"cache_bytes": 5})


def test_the_default_leaves_the_identity_of_older_runs(tmp_path: Path) -> None:
    older = tiny()
    assert older.hash == tiny(compute={"cache_frozen": False}).hash
    assert older.hash != tiny(compute={"cache_frozen": True}).hash
    assert tiny(compute={"cache_frozen": True}).hash != tiny(compute={"cache_frozen": True, "cache_bytes": 10**9}).hash
