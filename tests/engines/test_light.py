"""What every run waits for: libraries that only some need are not imported by the others."""

import subprocess
import sys

HEAVY = ("opacus", "flwr_datasets", "matplotlib", "seaborn", "scipy.stats", "ray", "sklearn")


def test_a_run_without_privacy_or_a_deal_imports_neither_opacus_nor_what_draws_pictures() -> None:
    code = f"import fedpeft.engines.inline, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
