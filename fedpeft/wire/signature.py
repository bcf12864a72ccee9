"""Who sent a reply: an Ed25519 signature (RFC 8032) over its checksum, by a key that each client has for this alone.

Flower lets a node in by its key, and does not hold the sender that a reply names against it: whoever is let in can
answer in another's name. The checksum is over header and body, and so binds job, round, fencing token, base model, what
is answered, client, number of examples and payload. The same reply has the same signature.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import RecordDict

from fedpeft.errors import InputError, RefusedError
from fedpeft.wire.record import content_of, record_of

__all__ = ["PUBLIC", "Keys", "Signer", "read_keys", "read_signer"]

PUBLIC = "application-{}.pub"
"""Name of a client's public file in the server's folder; clients count from 1 there."""
_NAME = re.compile(r"application-([1-9][0-9]*)\.pub")
_PURPOSE = b"fedpeft reply v1\0"
"""Before what is signed, so that a signature made for something else is none of a reply."""


@final
@dataclass(frozen=True)
class Signer:
    """A client's own key."""

    _key: Ed25519PrivateKey = field(repr=False)

    def signed(self, record: RecordDict) -> RecordDict:
        """Return a record of fedpeft with this client's signature."""
        content = content_of(record)
        return record_of(content._replace(signature=self._key.sign(_PURPOSE + content.checksum)))


@final
@dataclass(frozen=True)
class Keys:
    """The clients' public keys."""

    by_client: Mapping[int, Ed25519PublicKey]

    def require(self, client: int, record: RecordDict) -> None:
        """Refuse a record that this client did not sign.

        Raises:
            WireError: not a record of fedpeft, unsigned, or signed by another key or for something else.
        """
        content, key = content_of(record), self.by_client.get(client)
        if key is None:
            raise RefusedError("signature", f"reply of client {client}: the server has no key of this client")
        if not content.signature:
            raise RefusedError("signature", f"reply of client {client}: not signed; give it --application-key")
        try:
            key.verify(content.signature, _PURPOSE + content.checksum)
        except InvalidSignature as error:
            words = f"reply of client {client}: the signature is not this client's over these bytes"
            raise RefusedError("signature", words) from error


def read_signer(path: Path) -> Signer:
    """Return the key of a private file (PEM, PKCS 8).

    Raises:
        InputError: it cannot be read, or holds no Ed25519 key; never tells what it holds.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InputError(f"{path}: the application key cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path}: no private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: holds another kind of key, expected Ed25519; 'fedpeft deploy init' makes them")
    return Signer(key)


def read_keys(folder: Path) -> Keys:
    """Return the public keys of a folder, ``application-K.pub`` being that of client K - 1.

    Raises:
        InputError: there is none, or one is no Ed25519 key in OpenSSH's form.
    """
    found = {path: named for path in sorted(folder.glob("application-*.pub")) if (named := _NAME.fullmatch(path.name))}
    if not found:
        raise InputError(f"{folder}: no {PUBLIC.format('K')} there: every reply would be refused; name another folder")
    return Keys({int(named[1]) - 1: _public(path) for path, named in found.items()})


def _public(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path}: no public key in OpenSSH's form ({type(error).__name__})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: holds another kind of key, expected Ed25519")
    return key
