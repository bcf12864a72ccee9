"""Bounds on what one client can do: which of them would contradict another setting, or have no effect."""

from collections.abc import Mapping
from typing import Any

__all__ = ["idle_bounds"]


def idle_bounds(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the bounds on single replies, in words."""
    rounds, privacy = values["rounds"], values["privacy"]
    problems = []
    for name in ("max_update_norm", "max_product_norm"):
        if vars(rounds)[name] is not None and privacy is not None and privacy.unit == "client":
            problems.append(
                f"rounds.{name}: with privacy.unit = 'client' who is refused would depend on private data, and "
                "privacy.clip bounds every update; remove it"
            )
    if rounds.max_examples is not None and values["strategy"].table().get("weighting") == "uniform":
        problems.append("rounds.max_examples: has no effect with strategy.weighting 'uniform'; remove it")
    if rounds.rest_rounds and privacy is not None:
        problems.append(
            f"rounds.rest_rounds = {rounds.rest_rounds}: with [privacy] who takes part is drawn and charged, and does "
            "not depend on how long training takes; remove it"
        )
    return problems
