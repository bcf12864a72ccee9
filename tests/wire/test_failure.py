"""What a server is told of an error: a code, a kind and a number; the words are in the client's own log."""

import logging
import re
from typing import Any

import pytest

from fedpeft.errors import DataError, FedpeftError, PinError, WireError
from fedpeft.wire.failure import WORDS_VARIABLE, failure, tells
from fedpeft.wire.record import DECLINED, GAVE_UP


def reason(error: Exception, log: logging.Logger, **options: Any) -> str:
    told = failure(error, log, **options)
    assert told.code == (DECLINED if isinstance(error, PinError) else GAVE_UP)
    return str(told.reason)


_LOG = logging.getLogger("fedpeft.test")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("/home/secret.csv"), "gave up: data, DataError"),
        (WireError("secret"), "gave up: message, WireError"),
        (FileNotFoundError(2, "No such file", "/home/secret"), "gave up: system, FileNotFoundError"),
        (KeyError("secret"), "gave up: unexpected, KeyError"),
        (FedpeftError("secret"), "gave up: unexpected, FedpeftError"),
        (PinError("adapter.max_rank", "secret"), "declined: pin adapter.max_rank"),
    ],
)
def test_the_words_stay_in_the_log_under_a_number(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = reason(error, _LOG, who="client 3", words=False)
    found = re.fullmatch(rf"{re.escape(told)} \(id ([0-9a-f]{{12}})\)", said)
    assert found, said
    assert f"client 3 gave up (id {found[1]})" in caplog.text
    assert "secret" in caplog.text
    assert reason(error, _LOG, who="client 3", words=False) != said


def test_words_are_told_where_the_operator_says_so_and_never_under_privacy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(DataError("words"), _LOG, who="c", words=True) == "DataError: words"
    hidden = reason(DataError("words"), _LOG, who="c", words=True, hidden=True)
    assert hidden.startswith("gave up; with [privacy] the reason stays in the client's own log (id ")
    assert not tells()
    monkeypatch.setenv(WORDS_VARIABLE, "tell")
    assert tells()
