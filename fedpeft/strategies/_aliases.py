"""Names of the literature that are a strategy of this folder together with another setting."""

__all__ = ["ALIASES"]

ALIASES = {
    "dp_dylora": "DP-DyLoRA (Xu et al. 2024, arXiv 2405.06368) is strategy.name = 'dylora' with a [privacy] table of "
    "unit = 'client'",
    "dp_fedavg": "DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963) is strategy.name = 'fedavg' with a [privacy] table "
    "of unit = 'client'",
}
