"""The server's plan of an adapter: made once, and where the method needs it from public examples."""

from fedpeft import seeds
from fedpeft.adapters.base import Adapter
from fedpeft.adapters.calibration import Calibrator, Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.data.base import Splits
from fedpeft.errors import ConfigError, DataError
from fedpeft.models.base import Loaded
from fedpeft.tasks.base import Examples, Task
from fedpeft.training.loop import to_device

__all__ = ["make_plan"]


def make_plan(
    experiment: Experiment, adapter: Adapter, loaded: Loaded, task: Task, label_names: tuple[str, ...]
) -> Plan:
    """Plan the adapter on the model as it was loaded.

    Raises:
        ConfigError: the method needs public examples and there are none, or there are and it needs none.
        DataError: the public examples do not fit the experiment's.
        InputError: the method cannot serve this model.
    """
    statistics = _statistics(experiment, adapter, loaded, task, label_names)
    return adapter.plan(loaded.model, seed=seeds.derive(experiment.seed, "plan"), statistics=statistics)


def _statistics(
    experiment: Experiment, adapter: Adapter, loaded: Loaded, task: Task, label_names: tuple[str, ...]
) -> Statistics | None:
    calibrator, settings, name = adapter.calibrator(), experiment.calibration, experiment.adapter.name
    if calibrator is None and settings is not None:
        raise ConfigError(
            f"[calibration] has no effect with adapter {name!r}, which is planned without data; remove it"
        )
    if calibrator is None:
        return None
    if settings is None:
        raise ConfigError(
            f"adapter {name!r} is planned from examples; add [calibration] and [calibration_data] with public data of "
            "the task's columns"
        )
    examples = _public_examples(experiment, loaded, task, label_names)
    return _observed(calibrator, loaded, task, examples, batch_size=settings.batch_size)


def _public_examples(experiment: Experiment, loaded: Loaded, task: Task, label_names: tuple[str, ...]) -> Examples:
    if experiment.calibration is None or experiment.calibration_data is None:
        raise ConfigError("calibration needs both tables, [calibration] and [calibration_data]")
    splits: Splits = experiment.calibration_data.build().load(seed=seeds.derive(experiment.seed, "calibration"))
    if splits.label_names != label_names:
        raise DataError(f"calibration_data: labels {splits.label_names} are not the experiment's {label_names}")
    number = min(experiment.calibration.num_examples, len(splits.train))
    examples = task.encode(splits.train.select(range(number)), loaded.tokenizer)
    if not len(examples):
        raise DataError("calibration_data: no example is left once encoded")
    return examples


def _observed(calibrator: Calibrator, loaded: Loaded, task: Task, examples: Examples, *, batch_size: int) -> Statistics:
    model = loaded.model.eval()
    total: Statistics | None = None
    for start in range(0, len(examples), batch_size):
        rows = [examples[index] for index in range(start, min(start + batch_size, len(examples)))]
        found = calibrator.observe(model, to_device(task.collate(rows), model), task.losses)
        total = found if total is None else total + found
    if total is not None:
        total.sums.require_finite(where="calibration: statistics of the public examples")
    if total is None:
        raise DataError("calibration_data: no example is left once encoded")
    return total
