"""The data of an experiment, and who holds what of it."""

from fedpeft import seeds
from fedpeft.config import Experiment
from fedpeft.data.base import OwnSource, Partition, Source, Splits, VirtualPartition
from fedpeft.data.own import OwnShares
from fedpeft.data.shares import Shares, deal
from fedpeft.data.virtual import VirtualShares, made_when_drawn
from fedpeft.errors import ConfigError, DataError, UnsupportedError

__all__ = ["AnyShares", "deal_out", "virtual"]

AnyShares = Shares | OwnShares | VirtualShares


def deal_out(experiment: Experiment) -> tuple[Splits, AnyShares]:
    """Read the data and deal them.

    Raises:
        InputError: the data cannot be read, lack what the task needs, or do not go with the partition or the rounds.
    """
    source: Source = experiment.data.build()
    splits = source.load(seed=seeds.derive(experiment.seed, "data"))
    _require_columns(experiment, splits.train.column_names)
    shares = _shares(experiment, source, splits)
    rounds, have = experiment.rounds, shares.num_clients
    for key, value in (("clients_per_round", rounds.clients_per_round), ("min_clients", rounds.min_clients)):
        if value is not None and value > have:
            raise ConfigError(f"rounds.{key} = {value}: expected <= {have}, the number of clients in the partition")
    return splits, shares


def virtual(experiment: Experiment, splits: Splits) -> VirtualShares:
    """Return the clients of a virtual partition, where what is measured of them is what it says.

    Raises:
        DataError: the partition does not fit the data.
        UnsupportedError: a claim of single examples, which clients share here.
    """
    name, partition = experiment.partition.name, experiment.partition.build()
    if not isinstance(partition, VirtualPartition):
        raise DataError(f"partition.name = {name!r} deals examples, and none were dealt")
    if experiment.privacy is not None and experiment.privacy.unit == "example":
        raise UnsupportedError(
            f"partition.name = {name!r} with privacy.unit = 'example': clients share examples, so one example is in "
            "the training of many and each release of it adds up, while the stated epsilon is of one client alone; "
            "use a partition that deals each example once, or privacy.unit = 'client'"
        )
    if experiment.evaluate.on_clients:
        raise UnsupportedError(
            f"partition.name = {name!r} with evaluate.on_clients: what one client holds out others train on; leave "
            "evaluate.on_clients out"
        )
    return made_when_drawn(partition, splits.train, seed=_seed(experiment))


def _shares(experiment: Experiment, source: Source, splits: Splits) -> AnyShares:
    """Deal what the source has, or leave with each client what is its own."""
    partition: Partition = experiment.partition.build()
    if not isinstance(source, OwnSource):
        if isinstance(partition, VirtualPartition):
            return virtual(experiment, splits)
        return deal(splits.train, partition, seed=_seed(experiment))
    if partition.num_clients is None:
        raise ConfigError(
            f"partition.name = {experiment.partition.name!r}: data.name = {experiment.data.name!r} leaves each client "
            "its own data, and there is nothing to deal; write partition.name = 'own' with num_clients"
        )
    return OwnShares(source=source, splits=splits, num_clients=partition.num_clients, seed=_seed(experiment))


def _seed(experiment: Experiment) -> int:
    return seeds.derive(experiment.seed, "partition")


def _require_columns(experiment: Experiment, have: list[str]) -> None:
    for name in experiment.task.build().columns():
        if name not in have:
            raise DataError(
                f"data.name = {experiment.data.name!r}: no column {name!r}, which task.name = "
                f"{experiment.task.name!r} needs; there are {', '.join(have)}"
            )
