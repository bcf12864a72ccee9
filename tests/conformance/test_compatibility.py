"""The table in docs/compatibility.md is what the code does."""

import re

from tests.conformance.compatibility import PAGE, page


def test_the_table_in_the_docs_is_what_the_plugins_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.conformance.compatibility"


def test_every_refusal_names_its_reason_in_one_sentence() -> None:
    reasons = re.findall(r"^- \*\*\w+\*\*[^:]*: (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert reasons
    assert all(len(reason) > 30 for reason in reasons)
