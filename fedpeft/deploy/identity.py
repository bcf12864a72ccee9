"""Keys and certificates of a federation, made once: an authority, a certificate for each service, a key for each node.

Private files are readable by their owner alone. Nothing that exists is ever written over: a node's key is its identity.
"""

import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "Authority",
    "make_authority",
    "write_application_key",
    "write_authority",
    "write_certificate",
    "write_node_key",
    "write_operator_key",
    "write_private",
    "write_public",
    "write_secret",
]

VALID = timedelta(days=365)
_EARLY = timedelta(minutes=5)
"""A certificate is valid from a little before it is made, for clocks that are behind."""


@final
@dataclass(frozen=True)
class Authority:
    """Who signs the certificates of one federation."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make_authority(name: str) -> Authority:
    """Return a new authority that may sign nothing but end certificates."""
    key, subject = ec.generate_private_key(ec.SECP384R1()), _subject(name)
    builder = _builder(subject, subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return Authority(key, builder.add_extension(identifier, critical=False).sign(key, hashes.SHA384()))


def write_certificate(authority: Authority, folder: Path, name: str, hosts: Sequence[str]) -> None:
    """Write NAME.crt and NAME.key, for a service that is reached under these names or addresses.

    Raises:
        FileExistsError: one of both is there.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    builder = _builder(_subject(name), authority.certificate.subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    signed = builder.add_extension(issuer, critical=False).sign(authority.key, hashes.SHA384())
    write_private(folder / f"{name}.key", _pem(key))
    write_public(folder / f"{name}.crt", signed.public_bytes(serialization.Encoding.PEM))


def write_authority(authority: Authority, *, key: Path, certificates: Sequence[Path]) -> None:
    """Write the authority's key once, and its certificate wherever it is needed."""
    write_private(key, _pem(authority.key))
    for path in certificates:
        write_public(path, authority.certificate.public_bytes(serialization.Encoding.PEM))


def write_node_key(private: Path, public: Path) -> None:
    """Write the two halves of a client's identity, in the form that flwr reads (OpenSSH, P-384)."""
    key = ec.generate_private_key(ec.SECP384R1())
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private(private, encoded)
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_public(public, line + b"\n")


def write_operator_key(private: Path, publics: Sequence[Path]) -> None:
    """Write the key that signs what clients take part in, and its public half for each of them."""
    key = ed25519.Ed25519PrivateKey.generate()
    write_private(private, _pem(key))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for path in publics:
        write_public(path, public)


def write_application_key(private: Path, public: Path) -> None:
    """Write the two halves of the key by which a client signs its replies (Ed25519; PEM, and OpenSSH's line)."""
    key = ed25519.Ed25519PrivateKey.generate()
    write_private(private, _pem(key))
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_public(public, line + b"\n")


def write_secret(*paths: Path) -> None:
    """Write one new secret to each of the paths."""
    secret = secrets.token_hex(32).encode()
    for path in paths:
        write_private(path, secret)


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone may read."""
    _write(path, data, 0o600)


def write_public(path: Path, data: bytes) -> None:
    """Write a new file that all may read."""
    _write(path, data, 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _subject(name: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "fedpeft")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + VALID)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
