"""What every classifier shares: cross entropy of each example, correct answers counted, and the mean of both."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["answers", "losses", "means", "sums"]


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of each example, shape (batch,), float32; logits (batch, classes), labels (batch,)."""
    return cross_entropy(logits.float(), labels, reduction="none")


def sums(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return ``loss``, ``weight`` (examples) and ``correct``, each summed over the batch."""
    return {
        "loss": losses(logits, labels).double().sum().item(),
        "weight": float(len(labels)),
        "correct": float((logits.argmax(dim=-1) == labels).sum().item()),
    }


def means(totals: Mapping[str, float]) -> dict[str, float]:
    """Return the mean loss (nats) and the accuracy in [0, 1]."""
    return {"loss": totals["loss"] / totals["weight"], "accuracy": totals["correct"] / totals["weight"]}


def answers(logits: Tensor, names: Sequence[str]) -> list[str]:
    """Return the name of the most likely class of each row."""
    return [names[index] for index in logits.argmax(dim=-1).tolist()]
