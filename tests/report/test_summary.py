"""The summary is a function of the rounds, so a resumed run has the same one."""

import fedpeft
from fedpeft.config import Experiment
from fedpeft.report.record import RoundRecord
from fedpeft.report.summary import summarise


def test_the_summary_adds_up_the_rounds(experiment: Experiment, records: list[RoundRecord]) -> None:
    summary = summarise(experiment, records, adapter_digest="abc")
    assert (summary["name"], summary["seed"], summary["config_hash"]) == ("tiny", 7, experiment.hash)
    assert summary["strategy"] == {"name": "third_party.part", **experiment.strategy.options.model_dump()}
    assert summary["num_rounds"] == 3
    assert summary["first"] == {"round": 0, "metrics": {"loss": 1.2, "accuracy": 0.25}}
    assert summary["last"] == {"round": 3, "metrics": {"loss": 1.1 / 3, "accuracy": 0.75}}
    assert (summary["bytes_up"], summary["bytes_down"]) == (3000, 6000)
    assert (summary["seconds"], summary["num_failures"], summary["adapter_digest"]) == (6.5, 1, "abc")


def test_best_is_the_lowest_held_out_loss_and_the_earliest_of_equals(experiment: Experiment) -> None:
    records = [RoundRecord(round=number, metrics={"loss": loss}) for number, loss in enumerate([3.0, 1.0, 1.0, 2.0])]
    assert summarise(experiment, records, adapter_digest="")["best"] == {"round": 1, "metrics": {"loss": 1.0}}


def test_a_run_that_was_never_evaluated_has_no_metrics(experiment: Experiment) -> None:
    summary = summarise(experiment, [RoundRecord(round=1)], adapter_digest="")
    assert (summary["first"], summary["last"], summary["best"]) == (None, None, None)


def test_the_versions_are_those_installed(experiment: Experiment) -> None:
    versions = summarise(experiment, [], adapter_digest="")["versions"]
    assert set(versions) == {"fedpeft", "python", "torch", "transformers", "flwr", "peft"}
    assert versions["fedpeft"] == fedpeft.__version__
