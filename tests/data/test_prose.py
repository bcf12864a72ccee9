import pytest

from fedpeft.data import packages, prose

NUMPY_STYLE = """Compute the arithmetic mean along the specified axis.

Returns the average of the array elements, see :func:`~numpy.average` or `the guide <https://x.org>`_.

where ``n`` is the size::

    >>> np.mean([1, 2])
    1.5

Parameters
----------
a : array_like
    Array containing numbers whose mean is desired.

Notes
-----
The arithmetic mean is the sum of the elements.
"""


def test_only_the_prose_before_the_first_section_is_kept() -> None:
    assert prose.prose(NUMPY_STYLE) == (
        "Compute the arithmetic mean along the specified axis. "
        "Returns the average of the array elements, see numpy.average or the guide."
    )


@pytest.mark.parametrize(
    "block",
    [
        ">>> mean([1, 2])\n1.5",
        ".. versionadded:: 1.2\n   The keyword.",
        "    indented = code()",
        "```python\nmean()\n\nmore()\n```",
        "| a | b |\n| 1 | 2 |",
        "+---+---+",
        "====  ====\nname  what\n====  ====",
        "- first\n- second",
        "1. First of all.",
        ":param a: The array.",
        "Args:\n    a (int): The array.",
        "Example::\n\n    mean()",
        "a : array_like",
        "dim (int, optional): The dimension.",
        "The sum is $x + y$ here.",
        r"Here \frac{1}{2} is a half.",
        "Copyright 2020 The Authors.",
    ],
)
def test_blocks_that_are_not_prose_are_dropped(block: str) -> None:
    assert prose.prose(f"Compute the mean of a list.\n\n{block}") == "Compute the mean of a list."


def test_a_title_at_the_top_is_dropped_and_does_not_end_the_text() -> None:
    assert prose.prose("=====\nTitle\n=====\n\nThis module has functions.") == "This module has functions."


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Wraps [`Foo`] with **bold** and *soft* words", "Wraps Foo with bold and soft words."),
        ("Read [the page](https://x.org) first", "Read the page first."),
        ("See :ref:`the guide <guide>` and :class:`!Foo`.", "See the guide and Foo."),
        ("A method of Smith [1]_ and  others [2]_.", "A method of Smith and others."),
        ("Opens a .npy file, for example:", "Opens a .npy file, for example."),
    ],
)
def test_markup_leaves_its_words(text: str, plain: str) -> None:
    assert prose.prose(text) == plain


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("a numpy.ndarray or np.ndarray", "a [package] or [package]"),
        ("NumPy's arrays, in PyTorch style", "[package]'s arrays, in [package] style"),
        ("torchvision and my.torch.nn.Linear.", "[package] and [package]."),
        ("scikit-learn, scikit_learn, sklearn", "[package], [package], [package]"),
        ("Hugging Face Transformers models", "[package] models"),
        ("call get_peft_model on a PeftModel", "call [package] on a [package]"),
        ("pa.Table and pd.DataFrame", "[package] and [package]"),
        ("parameters are passed to a dataset", "parameters are passed to a dataset"),
        ("update, enrich, appear, warp", "update, enrich, appear, warp"),
    ],
)
def test_names_are_masked_and_ordinary_words_are_not(text: str, masked: str) -> None:
    pattern = prose.mask_pattern(packages.known_names(["numpy"]))
    assert prose.mask(text, pattern) == masked


def test_a_package_that_is_not_well_known_is_masked_by_its_name() -> None:
    pattern = prose.mask_pattern(packages.known_names(["ray", "lightgbm"]))
    assert prose.mask("An array of LightGBM trees on Ray.", pattern) == "An array of [package] trees on [package]."


def test_a_pattern_of_one_kind_of_name_does_not_match_everywhere() -> None:
    assert prose.mask("an array in ray", prose.mask_pattern(["ray"])) == "an array in [package]"
    assert prose.mask("an array in torch", prose.mask_pattern(["torch"])) == "an array in [package]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the largest element of the array.", True),
        ("Gibt das größte Element eines Feldes zurück.", False),
        ("Gibt das erste Element eines Feldes wieder her.", False),
        ("x_1 = f(a_2) + g(b_3) for the y_4", False),
        ("", False),
        ("[package] [package]", False),
    ],
)
def test_english_is_told_from_symbols_and_other_languages(text: str, expected: bool) -> None:
    assert prose.is_english(text) is expected
