"""Only its owner reaches a trainer, and nobody over a network."""

import os
import socket
import stat
from pathlib import Path

import pytest

from fedpeft.errors import InputError
from fedpeft.trainer.address import parse


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("unix:///run/x.sock", "unix:/run/x.sock"),
        ("127.0.0.1:9100", "127.0.0.1:9100"),
        ("127.8.9.1:1", "127.8.9.1:1"),
        ("[::1]:65535", "[::1]:65535"),
    ],
)
def test_a_socket_and_loopback_are_taken(text: str, target: str) -> None:
    assert parse(text).target == target
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix://relative.sock",
        "unix:///",
        "unix-abstract:name",
        f"unix:///{'x' * 107}",
        "0.0.0.0:9100",
        "[::]:9100",
        "10.0.0.1:9100",
        "192.168.1.5:9100",
        "localhost:9100",
        "example.org:9100",
        "dns:///127.0.0.1:9100",
        "http://127.0.0.1:9100",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:http",
    ],
)
def test_anything_else_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(InputError, match=r"trainer address .*expected unix:///folder/name.sock, 127.0.0.1:PORT"):
        parse(text)


def test_a_missing_folder_is_made_for_its_owner_alone(place: Path) -> None:
    parse(f"unix://{place}/a/t.sock").prepare()
    assert stat.S_IMODE((place / "a").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o770])
def test_a_folder_that_others_reach_is_refused(place: Path, mode: int) -> None:
    place.chmod(mode)
    address = parse(f"unix://{place}/t.sock")
    for check in (address.prepare, address.require_private):
        with pytest.raises(InputError, match=rf"folder has mode {mode:04o}, open to others.*chmod 0700 {place}"):
            check()


@pytest.mark.parametrize("mode", [0o666, 0o640, 0o602])
def test_a_socket_that_others_reach_is_refused(place: Path, mode: int) -> None:
    path = place / "t.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(mode)
        with pytest.raises(InputError, match=rf"socket has mode {mode:04o}, open to others.*chmod 0600"):
            parse(f"unix://{path}").require_private()
        path.chmod(0o600)
        parse(f"unix://{path}").require_private()


def test_what_a_killed_trainer_left_is_taken_away_and_a_living_one_is_not(place: Path) -> None:
    path = place / "t.sock"
    address = parse(f"unix://{path}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        with pytest.raises(InputError, match="another process listens there"):
            address.prepare()
        assert path.exists()
    address.prepare()
    assert not path.exists()


def test_what_is_no_socket_is_left_alone(place: Path) -> None:
    path = place / "t.sock"
    address = parse(f"unix://{path}")
    path.write_text("mine")
    with pytest.raises(InputError, match=r"t\.sock: not a socket"):
        address.prepare()
    assert path.read_text() == "mine"
    path.unlink()
    os.symlink(place / "elsewhere", path)
    for check in (address.prepare, address.require_private):
        with pytest.raises(InputError, match=r"t\.sock: not a socket"):
            check()


def test_somebody_elses_socket_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root gives the folder away; anyone else is taken for another user."""
    if os.geteuid() == 0:
        os.chown(place, 4242, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4243)
    address = parse(f"unix://{place}/t.sock")
    for check in (address.prepare, address.require_private):
        with pytest.raises(
            InputError, match=rf"the folder belongs to user \d+, expected {os.geteuid()}, who runs this"
        ):
            check()
