"""The identity of a frozen base."""

import torch
from torch import nn

from fedpeft.models.fingerprint import base_hash


def build() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.fill_(index)
    return model


def test_equal_models_agree() -> None:
    assert base_hash(build(), exclude=()) == base_hash(build(), exclude=())


def test_one_bit_of_a_parameter_or_a_buffer_counts() -> None:
    parameter, buffer = build(), build()
    parameter[0].weight.data[0, 0] = torch.nextafter(torch.tensor(0.0), torch.tensor(1.0))
    buffer[1].running_mean[0] = 1e-30

    assert len({base_hash(model, exclude=()) for model in (build(), parameter, buffer)}) == 3


def test_dtype_and_names_count() -> None:
    renamed = nn.Sequential()
    for name, module in zip("abc", build(), strict=True):
        renamed.add_module(name, module)

    assert len({base_hash(model, exclude=()) for model in (build(), build().bfloat16(), renamed)}) == 3


def test_the_head_does_not_count_when_left_out() -> None:
    other = build()
    nn.init.ones_(other[2].weight)

    assert base_hash(other, exclude=("2",)) == base_hash(build(), exclude=("2",))
    assert base_hash(other, exclude=()) != base_hash(build(), exclude=())


def test_only_whole_module_names_are_left_out() -> None:
    model = nn.ModuleDict({"score": nn.Linear(1, 1), "scorer": nn.Linear(1, 1)})
    before = base_hash(model, exclude=("score",))
    nn.init.constant_(model["scorer"].weight, 7.0)

    assert base_hash(model, exclude=("score",)) != before
