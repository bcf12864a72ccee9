"""What training costs in arithmetic, and what the machine could do: counted and measured once, in a moment."""

import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedpeft import seeds
from fedpeft.timing import Speed
from fedpeft.training.loop import autocast, to_device
from fedpeft.training.workbench import Workbench

__all__ = ["matmul_peak", "measure"]

_WIDTHS = {"cpu": 1024, "cuda": 8192}
_REPEATS = 5


def measure(bench: Workbench) -> Speed:
    """Count one forward and backward pass over held-out examples, and measure large matrix products.

    Only products are counted, as is usual: not attention's softmax, nor what privacy adds for single examples.
    """
    adapted, settings = bench.adapted, bench.experiment
    number = min(settings.train.batch_size, len(bench.held_out))
    batch = to_device(adapted.task.collate([bench.held_out[at] for at in range(number)]), adapted.attached.model)
    parameters = adapted.attached.parameters().values()
    counter = FlopCounterMode(display=False)
    with seeds.isolated(settings.seed, "speed"), counter:
        with autocast(adapted.attached.model, settings.compute.precision):
            losses = adapted.task.losses(adapted.attached.model, batch)
        losses.mean().backward()  # type: ignore[no-untyped-call]
    for parameter in parameters:
        parameter.grad = None
    elements = next(iter(batch.values())).numel()
    dtype = torch.bfloat16 if settings.compute.precision == "bfloat16" else torch.float32
    device = next(adapted.attached.model.parameters()).device
    return Speed(flops_per_element=counter.get_total_flops() / elements, peak=matmul_peak(device, dtype))


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of a product of two large square matrices, with torch's threads."""
    width = _WIDTHS.get(device.type, _WIDTHS["cpu"])
    matrix = torch.ones((width, width), dtype=dtype, device=device)
    return 2 * width**3 / min(_seconds(matrix) for _ in range(_REPEATS))


def _seconds(matrix: Tensor) -> float:
    began = time.perf_counter()
    product = matrix @ matrix
    product[0, 0].item()  # waits for the device
    return time.perf_counter() - began
