"""An encoder's widened mask: the same numbers, and traceable."""

import torch
from torch import nn

from fedpeft.models import tiny
from fedpeft.models.base import Wanted

TOKENS = torch.tensor([[7, 8, 9, 10], [7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def bert() -> nn.Module:
    wanted = Wanted(kind="sequence_classification", label_names=("a", "b"), seed=0)
    return tiny.make(tiny.Options()).load(wanted).model


def test_logits_are_those_of_the_library() -> None:
    plain = bert()
    plain.base_model._forward_pre_hooks.clear()

    assert torch.allclose(bert()(TOKENS, MASK).logits, plain(TOKENS, MASK).logits, atol=1e-6)


def test_padding_does_not_reach_the_tokens() -> None:
    assert torch.allclose(bert()(TOKENS, MASK).logits[1], bert()(TOKENS[1:, :2], MASK[1:, :2]).logits[0], atol=1e-6)


def test_two_clients_copies_run_as_one() -> None:
    model = bert()
    parameters = {name: torch.stack([value, 1.1 * value]) for name, value in model.named_parameters()}

    def logits(own: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, own, (TOKENS, MASK)).logits

    together = torch.func.vmap(logits)(parameters)

    for client in range(2):
        alone = logits({name: value[client] for name, value in parameters.items()})
        assert torch.allclose(together[client], alone, atol=1e-5)
