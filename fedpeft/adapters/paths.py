"""Names of layers: the path of each in its model, and the ends by which several are meant."""

__all__ = ["matches", "place"]


def matches(path: str, suffix: str) -> bool:
    """Whether a path ends in these whole components: ``mlp.fc1`` ends in ``fc1``, not in ``c1``."""
    return f".{path}".endswith(f".{suffix}")


def place(path: str) -> str:
    """Return where a layer stands in its block, what follows the last number: ``layer.0.mlp.fc1`` -> ``mlp.fc1``."""
    parts = path.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else path
