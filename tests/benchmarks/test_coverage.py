"""The benchmarks that promise all of a folder have all of it."""

from pathlib import Path

from benchmarks import adapters
from benchmarks import aggregation_jobs as aggregation
from fedpeft import plugins


def test_every_adapter_has_its_jobs_and_every_job_is_a_valid_experiment() -> None:
    assert adapters.adapters() == plugins.names("adapter")
    hashes = set()
    for name in adapters.adapters():
        for rate in adapters.RATES:
            for seed in (adapters.TUNING_SEED, *adapters.SEEDS):
                made = adapters.experiment(adapters.Job(name, rate, seed), Path("run"))
                assert made.adapter.name == name
                hashes.add(made.hash)
    assert len(hashes) == len(adapters.adapters()) * len(adapters.RATES) * 4


def test_every_strategy_is_in_every_part_and_seeds_of_results_are_not_the_tuning_seed() -> None:
    assert sorted(aggregation.STRATEGIES) == plugins.names("strategy")
    for part in aggregation.SETTINGS:
        for name in aggregation.STRATEGIES:
            made = aggregation.experiment(aggregation.Job(part, name, 0.1, 0), Path("run"))
            assert made.strategy.name == name
    assert aggregation.TUNING_SEED not in aggregation.SEEDS
    assert adapters.TUNING_SEED not in adapters.SEEDS


def test_a_sweep_sees_as_many_examples_whatever_its_local_steps() -> None:
    setting = aggregation.SETTINGS["clinc150"]
    for steps in aggregation.SWEPT_STEPS:
        job = aggregation.Job("clinc150", "fedavg", 0.1, 0, steps)
        made = aggregation.experiment(job, Path("run"))
        assert made.train.local_steps == steps
        assert made.rounds.num_rounds * steps == setting.num_rounds * setting.local_steps
