"""The folder is the registry."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft import plugins
from fedpeft.adapters._aliases import ALIASES
from fedpeft.errors import ConfigError


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A third party's package, empty, that Python can import."""
    package = tmp_path / "acme_plugins"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("acme_plugins")]:
        monkeypatch.delitem(sys.modules, name)
    return package


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_every_plugin_is_described_and_loads(group: str) -> None:
    described = plugins.describe(group)

    assert list(described) == plugins.names(group) == sorted(described)
    for name, summary in described.items():
        assert summary.endswith((".", ",", ":", ";")) or len(summary) > 20, f"{group} {name} has no summary"
        module = plugins.load(group, name)
        assert module.__name__ == f"{plugins.GROUPS[group]}.{name}"


def test_codecs_are_found_and_their_helpers_are_not() -> None:
    assert {"none", "bfloat16"} <= set(plugins.names("codec"))
    assert not {"base", "layout", "__init__"} & set(plugins.names("codec"))


def test_describing_imports_nothing_heavy() -> None:
    program = (
        "import sys; from fedpeft import plugins; [plugins.describe(group) for group in plugins.GROUPS];"
        "heavy = {'torch', 'numpy', 'flwr', 'transformers', 'peft', 'pydantic'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no codec 'bfloat61'; did you mean 'bfloat16'"):
        plugins.load("codec", "bfloat61")
    with pytest.raises(ConfigError, match=r"no codec 'zzz'; known: .*bfloat16.*none"):
        plugins.load("codec", "zzz")
    assert plugins.nearest("x", []) == "; none is known"


@pytest.mark.parametrize(
    "name",
    [
        "acme_plugins.missing",
        "acme_plugins.deep.missing",
        "no_such_package.lora",
        "json.decoder.lora",
        ".lora",
        "acme_plugins.",
        "acme_plugins..lora",
        "../lora.py",
    ],
)
@pytest.mark.usefixtures("acme")
def test_a_dotted_name_that_leads_nowhere_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such module to import"):
        plugins.load("adapter", name)


def test_a_third_partys_module_loads_by_its_dotted_name(acme: Path) -> None:
    (acme / "lora.py").write_text("class Options: ...\ndef make(options): ...\n")

    assert plugins.load("adapter", "acme_plugins.lora").__name__ == "acme_plugins.lora"


@pytest.mark.parametrize(("text", "needed"), [("def make(options): ...", "Options"), ("class Options: ...", "make")])
def test_a_module_that_is_no_plugin_is_refused(acme: Path, text: str, needed: str) -> None:
    (acme / "half.py").write_text(text)

    with pytest.raises(ConfigError, match=rf"adapter 'acme_plugins.half' .* has no {needed}: a plug-in defines"):
        plugins.load("adapter", "acme_plugins.half")


@pytest.mark.parametrize("place", ["lora.py", "__init__.py"])
def test_a_plugins_own_import_error_comes_through(acme: Path, place: str) -> None:
    (acme / "lora.py").write_text("class Options: ...\ndef make(options): ...\n")
    (acme / place).write_text("import a_library_that_is_not_installed\n")

    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_installed"):
        plugins.load("adapter", "acme_plugins.lora")


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_a_name_that_means_another_thing_elsewhere_is_refused_with_what_to_write(name: str) -> None:
    assert name not in plugins.names("adapter")
    with pytest.raises(ConfigError, match=f"no adapter '{name}': ") as caught:
        plugins.load("adapter", name)
    assert ALIASES[name] in str(caught.value)


def test_what_an_alias_says_to_write_is_there_to_be_written() -> None:
    named = {word for reason in ALIASES.values() for word in re.findall(r"(?:write|is|or) '(\w+)'", reason)}
    assert named
    assert named <= {*plugins.names("adapter"), *plugins.names("strategy")}
