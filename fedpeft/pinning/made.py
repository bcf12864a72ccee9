"""Pins that an experiment is just within, found with its data and model as the server has them."""

from fedpeft.adapters.paths import place
from fedpeft.config import Experiment
from fedpeft.pinning.manifest import AdapterPins, Pins, PrivacyPins, RoundsPins, TrainPins, plain
from fedpeft.training.workbench import Workbench

__all__ = ["pins_of"]


def pins_of(bench: Workbench) -> Pins:
    """Return pins that allow this experiment, and others that ask for no more."""
    experiment = bench.experiment
    sources = [each for each in (experiment.data, experiment.pretrain_data, experiment.calibration_data) if each]
    tables = {repr(table): table for table in (plain(each.table()) for each in sources)}
    return Pins(
        base_hash=bench.adapted.base_hash,
        strategies=(experiment.strategy.name,),
        codecs=tuple(dict.fromkeys((*experiment.codec.names, *experiment.codec_down.names))),
        evaluate_on_clients=experiment.evaluate.on_clients,
        model=plain(experiment.model.table()),
        task=plain(experiment.task.table()),
        partition=plain(experiment.partition.table()),
        data=tuple(tables.values()),
        adapter=_adapter(bench),
        train=TrainPins(max_local_steps=experiment.train.local_steps)
        if experiment.train.local_steps
        else TrainPins(max_local_epochs=experiment.train.local_epochs),
        rounds=RoundsPins(max_rounds=experiment.rounds.num_rounds, least_cohort=experiment.rounds.min_clients),
        privacy=_privacy(bench, experiment),
    )


def _adapter(bench: Workbench) -> AdapterPins:
    """Return what the plan comes to; what has no ranks is bounded by its size alone."""
    values, slots, strategy = bench.adapted.plan.values, bench.adapted.attached.slots, bench.strategy
    ranks = [rank for rank in (values.get("rank"), *values.get("ranks", {}).values()) if rank is not None]
    sent = (*strategy.downlink(slots), *strategy.beside(slots).down)
    return AdapterPins(
        names=(bench.adapted.plan.adapter,),
        targets=tuple(dict.fromkeys(place(path) for path in bench.adapted.plan.paths)) or None,
        max_rank=max(ranks, default=None),
        max_elements=None if ranks else sum(spec.num_elements for spec in sent),
    )


def _privacy(bench: Workbench, experiment: Experiment) -> PrivacyPins | None:
    privacy, mechanism = experiment.privacy, bench.mechanism
    if privacy is None or mechanism is None:
        return None
    return PrivacyPins(
        unit=privacy.unit,
        placement=privacy.placement,
        max_clip=privacy.clip,
        least_noise=mechanism.noise_multiplier,
        max_epsilon=mechanism.budget,
        max_delta=privacy.delta,
    )
