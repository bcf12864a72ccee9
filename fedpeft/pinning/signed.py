"""A manifest and its signature: Ed25519 over the file's bytes, hex in a file beside it, by the operator's key."""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from fedpeft.errors import InputError
from fedpeft.files import write_atomic
from fedpeft.pinning.manifest import Pins, parse

__all__ = ["SUFFIX", "read_pins", "write_signed"]

SUFFIX = ".sig"
"""Of the signature's file, after the manifest's name."""


def write_signed(path: Path, text: str, private: Path) -> None:
    """Write a manifest and its signature; one that is there is replaced.

    Raises:
        InputError: the key cannot be read, or is none of Ed25519.
    """
    key = _private(private)
    write_atomic(path.with_name(path.name + SUFFIX), key.sign(text.encode()).hex() + "\n")
    write_atomic(path, text)
    for each in (path, path.with_name(path.name + SUFFIX)):
        each.chmod(0o644)


def read_pins(path: Path, public: Path | None = None) -> Pins | None:
    """Return what a manifest pins, once its signature holds where a public key is given; None where it pins nothing.

    Raises:
        InputError: a file is missing or damaged, or the operator has not signed this manifest.
    """
    data = _read(path, "a manifest")
    if public is not None:
        _require_signed(path, data, public)
    try:
        return parse(data.decode(), where=path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def _require_signed(path: Path, data: bytes, public: Path) -> None:
    signature, key = _read(path.with_name(path.name + SUFFIX), "its signature"), _public(public)
    try:
        key.verify(bytes.fromhex(signature.decode()), data)
    except (InvalidSignature, ValueError) as error:
        raise InputError(
            f"{path}: not signed by the key of {public}: it was changed, or another operator wrote it; have it signed "
            "with fedpeft deploy pin"
        ) from error


def _public(path: Path) -> Ed25519PublicKey:
    data = _read(path, "the operator's public key")
    try:
        key = load_pem_public_key(data)
    except ValueError as error:
        raise InputError(f"{path}: no public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: expected a public key of Ed25519")
    return key


def _private(path: Path) -> Ed25519PrivateKey:
    data = _read(path, "the operator's key")
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: no private key without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: expected a private key of Ed25519")
    return key


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {what} cannot be read: {error.strerror}") from error
