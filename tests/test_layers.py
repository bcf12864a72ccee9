"""The shape of the package, read from its syntax: layers, homes of libraries, plug-ins apart, size budgets."""

import ast
import importlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    ("errors", "seeds", "files", "plugins", "tensors", "timing"),
    ("config",),
    ("data", "models", "tasks", "adapters", "privacy", "codecs", "strategies"),
    ("training", "wire"),
    ("report",),
    ("rounds",),
    ("pinning", "handshake"),
    ("client", "server", "trainer"),
    ("canaries", "cohort"),
    ("engines", "inference"),
    ("audit",),
    ("deploy",),
    ("cli_options",),
    ("cli_files", "cli_privacy", "cli_trainer"),
    ("cli_deploy",),
    ("cli_operations",),
    ("cli",),
    ("__main__", "/server", "/client"),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SHARED = ("base", "head", "plan")
"""Modules of a plug-in folder that other folders of the same layer may import."""
PLUGIN_FOLDERS = ("adapters", "codecs", "models", "data/partitions", "data/sources", "strategies", "tasks")
HOMES = {
    "bitsandbytes": ("models",),
    "constriction": ("codecs",),
    "peft": ("adapters",),
    "transformers": ("adapters", "models", "privacy", "tasks"),
    "datasets": ("data", "tasks"),
    "flwr_datasets": ("data",),
    "opacus": ("privacy", "training"),
    "google.protobuf": ("wire",),
    "grpc": ("wire", "trainer"),
    "grpc_health": ("trainer",),
    "flwr": (
        "wire",
        "rounds",
        "pinning",
        "engines",
        "handshake",
        "client",
        "cohort",
        "server",
        "trainer",
        "/server",
        "/client",
    ),
    "typer": ("cli_options", "cli", "cli_deploy", "cli_files", "cli_operations", "cli_privacy", "cli_trainer"),
    "cryptography": ("deploy", "pinning", "privacy", "wire"),
    "packaging": ("deploy",),
    "prometheus_client": ("report",),
    "yaml": ("deploy",),
    "rich": ("cli", "cli_files", "cli_privacy", "report"),
    "sklearn": ("data",),
}
FLWR_PUBLIC = ("flwr.app", "flwr.serverapp", "flwr.clientapp")
FORBIDDEN_MODULES = ("pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle")
FORBIDDEN_CALLS = ("eval", "exec", "torch.load", "yaml.load", "os.system", "os.popen")
FORBIDDEN_ARGUMENTS = ("allow_pickle", "trust_remote_code", "shell")
MAX_FILE, MAX_PLUGIN, MAX_FUNCTION = 300, 150, 40


@dataclass(frozen=True)
class Module:
    """One source file; server/ and client/ beside the package are named with a leading slash."""

    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def name(self) -> str:
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def part(self) -> str:
        """The name that LAYERS and HOMES know: the part of fedpeft, or the app's folder."""
        parts = self.name.split(".")
        return f"/{parts[0]}" if parts[0] != "fedpeft" else ".".join(parts[1:2])

    @property
    def package(self) -> str:
        return self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]

    @property
    def is_plugin(self) -> bool:
        folder = self.path.parent.relative_to(ROOT).as_posix().removeprefix("fedpeft/")
        if folder not in PLUGIN_FOLDERS or self.path.stem.startswith("_") or self.path.stem == "base":
            return False
        defined = {node.name for node in self.tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        return {"Options", "make"} <= defined

    def imports(self) -> Iterator[str]:
        """Every imported name, in full, those inside functions too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
                yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)

    def imported_modules(self) -> set[str]:
        """Which of our own modules this one imports: the longest prefix of each name that is a file of ours."""
        names = (name for name in self.imports() if "pb" not in name.split("."))
        found = (next((prefix for prefix in _prefixes(name) if prefix in BY_NAME), None) for name in names)
        return {name for name in found if name is not None} - {self.name}


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def _sweep() -> list[Module]:
    paths = sorted(path for folder in ("fedpeft", "server", "client") for path in (ROOT / folder).rglob("*.py"))
    return [Module(path) for path in paths if "pb" not in path.parts]


MODULES = _sweep()
BY_NAME = {module.name: module for module in MODULES}
PARTS = [module for module in MODULES if module.part]
"""All but fedpeft/__init__.py, which holds the version and belongs to no layer."""


def _starts(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _edges() -> Iterator[tuple[Module, Module]]:
    for module in PARTS:
        yield from ((module, BY_NAME[name]) for name in sorted(module.imported_modules()) if BY_NAME[name].part)


def _allowed(importer: Module, imported: Module) -> bool:
    if importer.part == imported.part:
        return True
    below = RANKS[imported.part] < RANKS[importer.part]
    level = RANKS[imported.part] == RANKS[importer.part]
    return below or (level and (imported.path.stem in SHARED or RANKS[imported.part] == 0))


def _calls(module: Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_sweep_saw_the_package() -> None:
    assert len(MODULES) >= 35
    assert len(list(_edges())) >= 40
    assert {module.part for module in PARTS} <= set(RANKS), "a part without a layer: give it one in LAYERS"
    assert BY_NAME["fedpeft.report.record"].imported_modules() == {"fedpeft.errors", "fedpeft.report.text"}


def test_imports_go_one_way() -> None:
    assert [f"{a.name} -> {b.name}" for a, b in _edges() if not _allowed(a, b)] == []


def test_no_plugin_imports_another() -> None:
    assert [f"{a.name} -> {b.name}" for a, b in _edges() if b.is_plugin] == []


def test_there_is_no_ring_of_imports() -> None:
    graph = {module.name: sorted(module.imported_modules()) for module in MODULES}
    assert _ring(graph) is None


def _ring(graph: dict[str, list[str]]) -> str | None:
    """Return the first ring found by depth-first search; a package's __init__ counts as a module."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> str | None:
        if name in path:
            return " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return None
        rings = (visit(target, (*path, name)) for target in graph[name])
        ring = next((ring for ring in rings if ring), None)
        done.add(name)
        return ring

    return next((ring for name in graph if (ring := visit(name, ()))), None)


def test_the_search_finds_a_ring() -> None:
    assert _ring({"a": ["b"], "b": ["c"], "c": ["b"]}) == "b -> c -> b"
    assert _ring({"a": ["b", "c"], "b": ["c"], "c": []}) is None


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    strays = [m.name for m in PARTS if m.part not in HOMES[library] and any(_starts(i, library) for i in m.imports())]
    assert strays == []


def test_only_what_flower_calls_public_is_imported() -> None:
    names = [(m.name, name) for m in MODULES for name in m.imports() if _starts(name, "flwr")]
    assert [(m, name) for m, name in names if not any(_starts(name, public) for public in FLWR_PUBLIC)] == []


def test_nothing_reads_code_from_data() -> None:
    imported = [(m.name, name) for m in MODULES for name in m.imports() if name.split(".")[0] in FORBIDDEN_MODULES]
    called = [(m.name, name) for m in MODULES for name, _ in _calls(m) if name in FORBIDDEN_CALLS]
    asked = [
        (module.name, keyword.arg)
        for module in MODULES
        for _, call in _calls(module)
        for keyword in call.keywords
        if keyword.arg in FORBIDDEN_ARGUMENTS and ast.unparse(keyword.value) != "False"
    ]
    assert (imported, called, asked) == ([], [], [])


@pytest.mark.filterwarnings("ignore:.*click:DeprecationWarning")
@pytest.mark.parametrize("module", [m for m in MODULES if m.path.stem != "__main__"], ids=lambda module: module.name)
def test_the_public_list_is_sorted_and_true(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    loaded = importlib.import_module(module.name)
    public = vars(loaded).get("__all__")
    if public is None:
        assert module.path.stem == "__init__", "a module says what is public"
        assert not list(module.imports()), "a package that re-exports says what"
        return
    assert public == sorted(public, key=_public_order)
    assert [name for name in public if name not in vars(loaded)] == []


def _public_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: the order that ruff keeps."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def test_files_and_functions_stay_small(record_property: Callable[[str, object], None]) -> None:
    lines = {module.name: module.text.count("\n") for module in MODULES}
    budgets = {module.name: MAX_PLUGIN if module.is_plugin else MAX_FILE for module in MODULES}
    functions = {f"{m.name}.{node.name}": _body_lines(node) for m in MODULES for node in _functions(m)}
    for key, sizes in (("file", lines), ("function", functions)):
        record_property(f"median_{key}_lines", statistics.median(sizes.values()))
    assert {name: count for name, count in lines.items() if count > budgets[name]} == {}
    assert {name: count for name, count in functions.items() if count > MAX_FUNCTION} == {}
    assert statistics.median(functions.values()) <= 10


def _functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1
