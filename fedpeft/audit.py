"""Attack a private experiment with its own code, and hold what was found beside what is claimed.

Three findings. One release, drawn for certain: what distinguishing it often finds, which is nearly all there is. One
run: the whole of its rounds, drawn as they are, attacked once; this sees accounting and sampling too, and finds less.
Membership: how well the losses of a finished run's adapter tell what it was trained on from what it was not, as an area
under the curve; no bound, but what an attacker without canaries has.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from fedpeft import seeds
from fedpeft.canaries import Mask, of_clients, of_examples
from fedpeft.config import Experiment
from fedpeft.errors import ConfigError
from fedpeft.inference import finished_bench
from fedpeft.privacy.bounds import one_run_bound, releases_bound
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.tasks.base import Examples
from fedpeft.training.loop import to_device
from fedpeft.training.workbench import Workbench, assemble

__all__ = ["Effort", "audit", "membership"]

_GUESSED = 0.2
"""Of the canaries of one run: the highest tenth is said to have taken part, the lowest not."""
_MEMBERS = 2000
_BATCH = 64


@final
@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard to try."""

    trials: int = 100_000
    """Releases with a canary, and as many without."""
    canaries: int = 1000
    """Of one run, and of one release of many."""
    confidence: float = 0.99
    seed: int = 0
    """Of coins and canaries; the noise is the experiment's own."""


def audit(experiment: Experiment, effort: Effort) -> dict[str, Any]:
    """Return what is claimed and what two attacks found, with ``holds`` whether neither found more.

    Raises:
        ConfigError: the experiment claims nothing, or there are more canaries than entries.
    """
    bench = assemble(experiment)
    if (mechanism := bench.mechanism) is None:
        raise ConfigError("the experiment has no [privacy] table: it claims nothing that could be audited")
    single, whole = _one_release(bench, mechanism, effort), _one_run(bench, mechanism, effort)
    return {
        "claim": mechanism.statement(mechanism.planned_rounds),
        "one_release": single,
        "one_run": whole,
        "holds": all(found["lower_bound"] <= found["claimed"] for found in (single, whole)),
    }


def _one_release(bench: Workbench, mechanism: Mechanism, effort: Effort) -> dict[str, Any]:
    certain = replace(mechanism, sample_rate=1.0, steps=1)
    attack, half = _attack(bench, certain, rounds=1), effort.canaries // 2
    mask = np.arange(2 * half) < half
    turns = -(-effort.trials // half)
    scores = [attack(mask, seeds.derive(effort.seed, "release", turn)) for turn in range(turns)]
    cut = float(torch.stack(scores).median())
    hits, alarms = (sum(int((found[part] > cut).sum()) for found in scores) for part in (mask, ~mask))
    found = releases_bound(
        hits=hits,
        with_canary=turns * half,
        alarms=alarms,
        without=turns * half,
        delta=mechanism.privacy.delta,
        confidence=effort.confidence,
    )
    return {
        "claimed": certain.spent(1),
        "lower_bound": found,
        "releases": 2 * turns * half,
        "confidence": effort.confidence,
    }


def _one_run(bench: Workbench, mechanism: Mechanism, effort: Effort) -> dict[str, Any]:
    """Toss a coin for each canary, run all planned rounds, and say of those that stand out what the coin was."""
    coins: Mask = np.random.default_rng(seeds.derive(effort.seed, "coins")).random(effort.canaries) < 0.5
    scores = _attack(bench, mechanism, rounds=mechanism.planned_rounds)(coins, effort.seed)
    order, each = np.argsort(scores.numpy()), round(effort.canaries * _GUESSED / 2)
    correct = int(coins[order[-each:]].sum() + (~coins[order[:each]]).sum())
    found = one_run_bound(
        canaries=effort.canaries,
        guesses=2 * each,
        correct=correct,
        delta=mechanism.privacy.delta,
        confidence=effort.confidence,
    )
    most = one_run_bound(
        canaries=effort.canaries,
        guesses=2 * each,
        correct=2 * each,
        delta=mechanism.privacy.delta,
        confidence=effort.confidence,
    )
    return {
        "claimed": mechanism.spent(mechanism.planned_rounds),
        "lower_bound": found,
        "largest_it_could_find": most,
        "canaries": effort.canaries,
        "guesses": 2 * each,
        "correct": correct,
        "confidence": effort.confidence,
    }


def _attack(bench: Workbench, mechanism: Mechanism, *, rounds: int) -> Callable[[Mask, int], Tensor]:
    def scores(mask: Mask, seed: int) -> Tensor:
        if mechanism.privacy.unit == "example":
            return of_examples(mechanism, mask, rounds=rounds, seed=seed)
        return of_clients(bench, mechanism, mask, rounds=rounds, seed=seed)

    return scores


def membership(run: Path) -> dict[str, Any]:
    """Return the area under the curve of telling by its loss what a finished run trained on from what it held out.

    0.5 is chance. At most 2,000 of either, evenly from all clients, or from the first 2,000 of them.

    Raises:
        ResumeError: there is no finished run.
    """
    bench = finished_bench(run)
    held, clients = bench.held_out, min(bench.shares.num_clients, _MEMBERS)
    each = max(1, min(_MEMBERS, len(held)) // clients)
    inside = np.concatenate([_losses(bench, bench.client_examples(k)[0], each) for k in range(clients)])
    outside = _losses(bench, held, _MEMBERS)
    ranks = rankdata(-np.concatenate([inside, outside]))
    above = ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2
    auc = float(above / (len(inside) * len(outside)))
    return {"auc": auc, "members": len(inside), "others": len(outside)}


def _losses(bench: Workbench, examples: Examples, most: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the losses of the first examples, at most so many."""
    model, task, count = bench.adapted.attached.model, bench.adapted.task, min(most, len(examples))
    found = []
    with torch.no_grad():
        for start in range(0, count, _BATCH):
            rows = [examples[at] for at in range(start, min(start + _BATCH, count))]
            found.append(task.losses(model, to_device(task.collate(rows), model)).double().cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)
