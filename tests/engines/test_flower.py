"""What Ray is told to set aside for one client, on machines without a GPU too."""

from typing import Any

import pytest

from fedpeft.engines import flower
from fedpeft.engines.sizing import num_workers
from fedpeft.errors import UnsupportedError
from tests.conftest import tiny


def resources(device: str, **simulation: Any) -> str:
    return flower._resources(tiny(compute={"device": device, "num_threads": 1}, simulation=simulation))


@pytest.mark.parametrize(
    ("device", "share", "told"),
    [
        ("cpu", None, "client-resources-num-cpus=1"),
        ("cuda", None, "client-resources-num-cpus=1 client-resources-num-gpus=1.0"),
        ("cuda", 0.25, "client-resources-num-cpus=1 client-resources-num-gpus=0.25"),
        ("cuda", 2, "client-resources-num-cpus=1 client-resources-num-gpus=2.0"),
    ],
)
def test_a_client_gets_its_threads_and_its_share_of_a_gpu(device: str, share: float | None, told: str) -> None:
    assert resources(device, gpus_per_client=share) == told


@pytest.mark.parametrize(
    ("device", "share", "refusal"),
    [
        ("cpu", 0.5, r"gpus_per_client = 0.5 with compute.device = 'cpu': without effect; set compute.device = 'cuda'"),
        ("cuda", 1.5, r"gpus_per_client = 1.5: Ray hands out a share of one GPU or whole ones"),
        ("cuda:1", None, r"compute.device = 'cuda:1': under Flower's simulation Ray hands out the GPUs; use 'cuda'"),
    ],
)
def test_what_ray_cannot_do_is_refused(device: str, share: float | None, refusal: str) -> None:
    with pytest.raises(UnsupportedError, match=refusal):
        resources(device, gpus_per_client=share)


def test_shares_of_gpus_are_refused_where_one_process_trains() -> None:
    with pytest.raises(
        UnsupportedError, match=r"gpus_per_client = 0.5: one process trains on .* use the flower engine"
    ):
        num_workers(tiny(simulation={"gpus_per_client": 0.5}), num_clients=3)


def test_how_a_machine_is_used_is_no_part_of_the_experiment() -> None:
    assert tiny(simulation={"gpus_per_client": 0.5}).hash == tiny().hash
