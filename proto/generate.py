"""Write fedpeft/wire/pb/ from proto/fedpeft/, or with --check say which file would change and exit 1."""

import argparse
import sys
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

_PROTO = Path(__file__).resolve().parent
_PACKAGE = "fedpeft/wire/pb"


def generate(target: Path) -> list[Path]:
    """Write the Python modules and their stubs below a folder; return their paths relative to it.

    Raises:
        RuntimeError: protoc refused a file; it has said why on stderr.
    """
    for folder in sorted({path.parent for path in _PROTO.glob("fedpeft/*/*.proto")}):
        _compile(folder, target)
    return sorted(path.relative_to(target) for path in target.glob(f"{_PACKAGE}/*/*_pb2.py*"))


def stale(repository: Path) -> list[Path]:
    """Return the generated files that are missing, out of date or left over."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        wanted = set(generate(fresh))
        present = {path.relative_to(repository) for path in repository.glob(f"{_PACKAGE}/*/*_pb2.py*")}
        changed = {path for path in wanted & present if (fresh / path).read_bytes() != (repository / path).read_bytes()}
    return sorted(changed | (wanted ^ present))


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check, repository = parser.parse_args().check, _PROTO.parent
    if check:
        changed = stale(repository)
        for path in changed:
            print(f"{path}: not what proto/ gives; run python proto/generate.py with {_tool()}")  # noqa: T201
        return 1 if changed else 0
    for path in generate(repository):
        print(path)  # noqa: T201
    return 0


def _compile(folder: Path, target: Path) -> None:
    package = f"{_PACKAGE}/{folder.name}"
    sources = [f"{package}/{path.name}" for path in sorted(folder.glob("*.proto"))]
    known = files("grpc_tools") / "_proto"
    options = [f"-I{package}={folder}", f"-I{known}", f"--python_out={target}", f"--pyi_out={target}"]
    if protoc.main(["protoc", *options, *sources]) != 0:
        raise RuntimeError(f"protoc refused a file of {folder}")


def _tool() -> str:
    return f"grpcio-tools {version('grpcio-tools')}"


if __name__ == "__main__":
    sys.exit(main())
