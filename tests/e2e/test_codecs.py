"""Every codec in a federation: both sides agree on classes and seeds, and only what trains reaches a codec."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft import plugins
from fedpeft.adapters.base import pairs
from fedpeft.codecs.base import Common
from fedpeft.codecs.chain import Chain
from fedpeft.codecs.int8 import Int8
from fedpeft.codecs.none import Lossless
from fedpeft.codecs.top_k import TopK
from fedpeft.engines.inline import simulate
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.lora_fair import LoraFair
from fedpeft.tensors import Tensors
from fedpeft.training.workbench import assemble
from tests.conftest import needed, tiny
from tests.e2e.test_inline import lines


def tables(name: str) -> dict[str, Any]:
    """Return one experiment's codecs: the same both ways."""
    return {"codec": {"name": name}, "codec_down": {"name": name}}


@pytest.mark.parametrize("name", plugins.names("codec"))
def test_a_federation_runs_with_it(tmp_path: Path, name: str) -> None:
    simulate(tiny(tmp_path / "run", **tables(name)))

    assert [row["failures"] for row in lines(tmp_path / "run")] == [[]] * len(lines(tmp_path / "run"))


def test_a_chain_goes_up_and_another_codec_down(tmp_path: Path) -> None:
    chain = [{"name": "top_k", "density": 0.1}, {"name": "int8"}]
    sizes = {}
    for name, codecs in {
        "float32": {},
        "chain": {"codec": chain},
        "both": {"codec": chain, "codec_down": {"name": "int8"}},
    }.items():
        simulate(tiny(tmp_path / name, rounds={"num_rounds": 1}, **codecs))
        row = lines(tmp_path / name)[1]
        assert row["failures"] == []
        sizes[name] = (row["bytes_up"], row["bytes_down"])
    assert sizes["chain"][0] < sizes["float32"][0] / 2
    assert sizes["chain"][1] == pytest.approx(sizes["float32"][1], rel=0.01)
    assert sizes["both"][1] < sizes["float32"][1] / 2


def test_a_chain_out_of_order_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="codec int8 stands before top_k"):
        simulate(tiny(tmp_path / "run", codec=[{"name": "int8"}, {"name": "top_k"}]))
    assert not (tmp_path / "run").exists()


def test_seeds_differ_by_direction_round_and_client_and_classes_are_the_slots_roles(tmp_path: Path) -> None:
    bench = assemble(tiny(tmp_path / "run"))
    found = [
        bench.common("up", round_number=1, client=0),
        bench.common("up", round_number=1, client=1),
        bench.common("up", round_number=2, client=0),
        bench.common("down", round_number=1),
        bench.common("down", round_number=2),
    ]
    assert len({common.seed for common in found}) == 5
    assert found[0] == bench.common("up", round_number=1, client=0)
    roles = {slot.name: slot.role for slot in bench.adapted.attached.slots}
    assert found[0].roles == roles
    assert {"A", "B"} <= set(roles.values())


def test_what_does_not_train_never_reaches_the_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen factors and ranks beyond a client's are cut out before: they are outside density and scale."""
    seen: list[Tensors] = []
    split = TopK.split

    def watched(self: TopK, tensors: Tensors, common: Common) -> tuple[bytes, Tensors]:
        seen.append(tensors)
        return split(self, tensors, common)

    monkeypatch.setattr(TopK, "split", watched)
    for strategy in ({"name": "ffa_lora"}, {"name": "dylora"}, {"name": "rolora"}):
        seen.clear()
        experiment = tiny(tmp_path / strategy["name"], strategy=strategy, codec={"name": "top_k"})
        simulate(experiment)
        bench = assemble(experiment)
        slots = {slot.name: slot for slot in bench.adapted.attached.slots}
        directives = [
            bench.strategy.directive(
                tuple(slots.values()),
                bench.strategy.init(tuple(slots.values()), bench.adapted.initial),
                round_number=number,
                client=client,
            )
            for number in range(1, experiment.rounds.num_rounds + 1)
            for client in range(bench.shares.num_clients)
        ]
        wanted = [d.select(tuple(slots.values()), bench.strategy.uplink(tuple(slots.values()))) for d in directives]
        assert [tensors.manifest() for tensors in seen] == wanted
        assert pairs(slots.values())
        sent = {slots[name].role for tensors in seen for name in tensors}
        assert "A" not in sent or strategy["name"] != "ffa_lora"
        if strategy["name"] == "dylora":
            assert any(tensor.shape != slots[name].shape for tensors in seen for name, tensor in tensors.items())
        if strategy["name"] == "rolora":
            assert all(len({slots[name].role for name in tensors} & {"A", "B"}) == 1 for tensors in seen)


def test_the_header_names_the_chain_and_the_workbench_builds_it(tmp_path: Path) -> None:
    bench = assemble(tiny(tmp_path / "run", codec=[{"name": "top_k"}, {"name": "int8"}]))
    assert bench.experiment.codec.names == ("top_k", "int8")
    assert bench.codec == Chain((TopK(),), Int8())
    assert bench.codec_down == Lossless()


def test_lora_fair_corrects_what_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that reaches the correction is what the wire carried: of each class few entries, of one magnitude."""
    came: list[Tensors] = []
    prepare = LoraFair.prepare

    def spied(self: LoraFair, slots: Any, state: Any, update: Any) -> Any:
        came.append(update.delta)
        return prepare(self, slots, state, update)

    monkeypatch.setattr(LoraFair, "prepare", spied)
    settings = tiny(tmp_path / "run", **needed("lora_fair", codec={"name": "compeft", "density": 0.1}))
    simulate(settings)

    roles = {slot.name: slot.role for slot in assemble(settings).adapted.attached.slots}
    assert len(came) == sum(len(row["clients"]) for row in lines(tmp_path / "run"))
    for delta in came:
        for role in ("A", "B"):
            flat = torch.cat([tensor.flatten() for name, tensor in delta.items() if roles[name] == role])
            kept = flat[flat != 0].abs()
            assert 0 < len(kept) <= round(0.1 * len(flat))
            assert len(kept.unique()) == 1
