import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from fedpeft.data import tables
from fedpeft.data.base import Splits
from fedpeft.data.sources import table
from fedpeft.errors import DataError

Write = Callable[[str, list[dict[str, object]]], str]
ROWS: list[dict[str, object]] = [
    {"sentence": f"sentence {n}", "feeling": ["bad", "good"][n % 2], "who": f"user {n % 3}", "other": n}
    for n in range(10)
]
NAMES = {"text": "sentence", "label": "feeling", "client": "who"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(name: str, rows: list[dict[str, object]]) -> str:
        path = tmp_path / name
        if path.suffix == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif path.suffix == ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        else:
            cells = [rows[0].keys(), *(row.values() for row in rows)]
            path.write_text("\n".join(",".join(str(cell) for cell in line) for line in cells) + "\n")
        return str(path)

    return file


def load(seed: int = 0, **options: object) -> Splits:
    return table.make(table.Options.model_validate(options)).load(seed=seed)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_named_columns_are_read_under_canonical_names(write: Write, suffix: str) -> None:
    splits = load(path=write(f"a.{suffix}", ROWS), **NAMES)
    assert (len(splits.train), len(splits.test)) == (8, 2)
    assert sorted(splits.train.column_names) == ["client", "label", "text"]
    assert splits.label_names == ("bad", "good")
    for row in [*splits.train, *splits.test]:
        number = int(row["text"].removeprefix("sentence "))
        assert (row["label"], row["client"]) == (number % 2, f"user {number % 3}")


def test_all_formats_give_the_same_splits(write: Write) -> None:
    found = [load(3, path=write(f"a.{suffix}", ROWS), **NAMES) for suffix in ("csv", "jsonl", "parquet")]
    assert found[0].train.to_dict() == found[1].train.to_dict() == found[2].train.to_dict()
    assert found[0].test.to_dict() != load(4, path=write("a.csv", ROWS), **NAMES).test.to_dict()


def test_a_test_file_is_held_out_whole_and_both_are_cut_to_their_limits(write: Write) -> None:
    train, test = write("a.csv", ROWS), write("b.jsonl", ROWS[:4])
    splits = load(path=train, test_path=test, **NAMES)
    assert splits.test["text"][:] == [row["sentence"] for row in ROWS[:4]]
    assert len(splits.train) == 10
    limited = load(path=train, test_path=test, max_train=3, max_test=2, **NAMES)
    assert (len(limited.train), len(limited.test)) == (3, 2)


def test_pairs_and_prompts_are_read(write: Write) -> None:
    rows: list[dict[str, object]] = [{"q": f"q{n}", "a": f"a{n}", "x": f"x{n}", "y": f"y{n}"} for n in range(5)]
    splits = load(path=write("a.jsonl", rows), prompt="q", answer="a", text="x", text2="y")
    assert splits.label_names == ()
    assert {tuple(row[name][0] for name in ("prompt", "answer", "text", "text2")) for row in splits.train} == {
        ("q", "a", "x", "y")
    }


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_integer_labels_are_sorted_as_numbers(write: Write, suffix: str) -> None:
    rows: list[dict[str, object]] = [{"t": f"t{n}", "l": [10, 9, -1][n % 3]} for n in range(9)]
    splits = load(path=write(f"a.{suffix}", rows), text="t", label="l")
    assert splits.label_names == ("-1", "9", "10")
    assert all(row["label"] == [2, 1, 0][int(row["text"][1:]) % 3] for row in splits.train)


def test_csv_cells_stay_the_text_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('t,l\n2020-01-01,01\n007,01\n"two\nlines, quoted",NA\ntrue,NA\n')
    splits = load(path=str(path), test_path=str(path), text="t", label="l")
    assert splits.train["text"][:] == ["2020-01-01", "007", "two\nlines, quoted", "true"]
    assert splits.label_names == ("01", "NA")


def test_a_quoted_line_break_may_fall_between_two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    texts = [f"line {n}\nand its continuation {n}" for n in range(40)]
    path.write_text("t\n" + "".join(f'"{text}"\n' for text in texts))
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 64)
    assert load(path=str(path), test_path=str(path), text="t").train["text"][:] == texts


def test_jsonl_strings_that_look_like_dates_stay_strings(write: Write) -> None:
    path = write("a.jsonl", [{"t": "2020-01-01 00:00:00"}, {"t": "b"}])
    assert load(path=path, test_path=path, text="t").train["text"][0] == "2020-01-01 00:00:00"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("cell", ["", "  "])
def test_an_empty_cell_is_named_by_row_and_column(write: Write, suffix: str, cell: str) -> None:
    rows = [*ROWS[:3], {**ROWS[3], "feeling": cell}]
    with pytest.raises(DataError, match=rf"a\.{suffix}: row 4, column 'feeling': empty"):
        load(path=write(f"a.{suffix}", rows), **NAMES)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_missing_cell_is_named_by_row_and_column(write: Write, suffix: str) -> None:
    rows = [*ROWS[:2], {"sentence": "s", "feeling": "bad"}]
    with pytest.raises(DataError, match=rf"a\.{suffix}: row 3, column 'who': empty"):
        load(path=write(f"a.{suffix}", rows), **NAMES)


@pytest.mark.parametrize(("column", "wanted"), [("sentence", "a string$"), ("feeling", "a string or an integer$")])
@pytest.mark.parametrize("cell", [1.5, True])
def test_a_cell_of_another_type_is_refused(write: Write, column: str, wanted: str, cell: object) -> None:
    with pytest.raises(
        DataError, match=rf"row 2, column '{column}': {cell} is a {type(cell).__name__}; expected {wanted}"
    ):
        load(path=write("a.jsonl", [ROWS[0], {**ROWS[1], column: cell}]), **NAMES)


def test_a_held_out_label_unknown_to_train_is_named(write: Write) -> None:
    train, test = write("a.csv", ROWS), write("b.csv", [ROWS[0], {**ROWS[1], "feeling": "mixed"}])
    with pytest.raises(
        DataError, match=r"b\.csv: row 2: label 'mixed' is not in the training data, which has bad, good"
    ):
        load(path=train, test_path=test, **NAMES)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_missing_column_lists_those_that_are_there(write: Write, suffix: str) -> None:
    with pytest.raises(DataError) as caught:
        load(path=write(f"a.{suffix}", ROWS), text="sentense", label="feeling")
    message = str(caught.value)
    assert "no column 'sentense' for data.text; the columns are " in message
    assert message.endswith("did you mean 'sentence'?")
    assert all(name in message for name in ("feeling", "who", "other"))


def test_a_name_that_two_columns_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,l,t\na,b,c\n")
    with pytest.raises(DataError, match=r"a\.csv: 2 columns are called 't'; rename all but one"):
        load(path=str(tmp_path / "a.csv"), text="t")


@pytest.mark.parametrize("name", ["none.csv", "none.jsonl", "none.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        load(path=str(tmp_path / name), text="t")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.xlsx: expected a file that ends in \.csv, \.jsonl or \.parquet"):
        load(path=str(tmp_path / "a.xlsx"), text="t")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 this is not a table"),
        ("a.parquet", b""),
        ("a.csv", b""),
        ("a.csv", b"t,l\none,a\ntwo\n"),
        ("a.csv", b"t,l\n\xff\xfe,a\n"),
        ("a.jsonl", b'{"t": "\xff"}\n'),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: not readable as"):
        load(path=str(tmp_path / name), text="t", label="l")


@pytest.mark.parametrize(("line", "message"), [("{", "not valid JSON"), ("[1]", "expected an object")])
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"t": "x"}}\n\n{line}\n')
    with pytest.raises(DataError, match=rf"line 3: {message}"):
        load(path=str(tmp_path / "a.jsonl"), text="t")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_without_rows_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        path.write_text("t\n")
    else:
        parquet.write_table(pyarrow.table({"t": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DataError, match="no rows"):
        load(path=str(path), text="t")


@pytest.mark.parametrize("names", [{}, {"label": "l"}, {"text2": "b", "prompt": "a"}, {"answer": "b", "text": "a"}])
def test_names_that_make_no_example_are_refused(names: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"expected the name of a column|needs"):
        table.Options.model_validate({"path": "a.csv", **names})
