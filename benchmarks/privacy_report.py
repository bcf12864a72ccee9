"""The section of docs/results.md that benchmarks/privacy.py makes, and its pictures."""

__all__ = ["section"]


def section(parts: object) -> str:
    """Placeholder."""
    raise NotImplementedError
