import sys
from pathlib import Path

import pytest

from fedpeft.data import packages
from fedpeft.errors import DataError

SOURCE = '''"""Of the module."""
class A:
    """Of the class."""
    def b(self):
        """Of the method."""
        def c():
            """Of the inner function."""
    async def d(self):
        """Of the coroutine."""
text = """Not a docstring."""
raise RuntimeError("must never be run")
'''


def test_docstrings_come_in_order_and_nothing_is_run(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    assert list(packages.docstrings(path)) == [
        "Of the module.",
        "Of the class.",
        "Of the method.",
        "Of the inner function.",
        "Of the coroutine.",
    ]


@pytest.mark.parametrize("content", [b"def (", b"\x00", b"\xff\xfe\x00bad"])
def test_a_file_that_is_not_python_has_no_docstrings(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(content)
    assert list(packages.docstrings(path)) == []


def test_an_invalid_escape_in_anothers_file_does_not_warn(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(b'"""A \\d digit."""\nx = "\\d"\n')
    assert list(packages.docstrings(path)) == ["A \\d digit."]


def test_tests_and_vendored_code_are_left_out_and_the_rest_is_sorted(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "tests/x.py", "a/_vendor/y.py", "test_b.py", "a/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert packages.sources(tmp_path) == [tmp_path / "a/z.py", tmp_path / "b.py"]


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neverimported").mkdir()
    (tmp_path / "neverimported/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.locate("neverimported") == tmp_path / "neverimported"
    assert "neverimported" not in sys.modules


def test_a_missing_package_is_named_with_the_nearest_installed_one() -> None:
    with pytest.raises(DataError, match="'nunpy' is not an installed package; did you mean 'numpy'"):
        packages.locate("nunpy")


def test_a_missing_package_like_no_other_lists_what_is_installed() -> None:
    with pytest.raises(DataError, match=r"'qqqqqq' is not .*known: .*numpy.*torch"):
        packages.locate("qqqqqq")


def test_a_single_file_module_is_no_package() -> None:
    with pytest.raises(DataError, match="'typing_extensions' is not an installed package"):
        packages.locate("typing_extensions")
