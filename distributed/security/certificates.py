"""Certificates and private keys: from files or text into an `ssl.SSLContext`, and newly made.

Wherever one is asked for, it may be the path of a PEM file or the PEM text itself. A key given as
text is on disk, readable for nobody else, only while OpenSSL reads it, and nothing here shows one.

`distributed.security` decides which of them belong into a context; this module knows no roles, and
is passed once per context.
"""

from __future__ import annotations

import datetime
import os
import re
import ssl
import tempfile
from contextlib import ExitStack
from typing import Final, NoReturn

#: A key in one line, without the header that would tell so.
_LOOKS_LIKE_KEY: Final = re.compile(r"[A-Za-z0-9+/=]{60,}")

#: Bits of the key that `make_certificate` makes, and for how long its certificate is valid. It
#: begins a day early for the sake of hosts whose clocks are slow.
_KEY_SIZE: Final = 2048
_VALID_SINCE: Final = datetime.timedelta(days=1)
_VALID_FOR: Final = datetime.timedelta(days=365)


def shown(value: str) -> str:
    """Where a certificate or key comes from, as anybody may see it."""
    if _is_pem(value) or _LOOKS_LIKE_KEY.fullmatch(value):
        return "Temporary (In-memory)"
    return f"Local ({os.path.abspath(value)})"


def load_authority(context: ssl.SSLContext, ca_file: str, what: str) -> None:
    """Let a context accept the peers whose certificates the authorities in *ca_file* signed.

    Parameters
    ----------
    context
        The context to change.
    ca_file
        Their certificates, path or PEM text.
    what
        What to call it in an error.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If there is no certificate in it.
    """
    try:
        if _is_pem(ca_file):
            context.load_verify_locations(cadata=ca_file)
        else:
            context.load_verify_locations(cafile=ca_file)
    except (OSError, ValueError) as exc:
        _raise_unusable(what, "certificates in PEM format", exc)


def load_identity(context: ssl.SSLContext, cert: str, key: str | None, what: str) -> None:
    """Give a context the certificate that it shows to peers.

    Parameters
    ----------
    context
        The context to change.
    cert, key
        The certificate (chain) and its private key, paths or PEM texts. Without a *key* it is in
        *cert*.
    what
        What to call them in an error.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If they are no certificate and key, do not belong together, or the key is encrypted.
    """

    def no_passphrase() -> NoReturn:
        # OpenSSL would ask for it on the terminal, and wait there.
        raise ValueError(f"{what}: the key is encrypted, decrypt it first (openssl pkey)")

    with ExitStack() as stack:
        cert_path = _path_of(cert, stack)
        key_path = _path_of(key, stack) if key else None
        try:
            context.load_cert_chain(cert_path, key_path, password=no_passphrase)
        except OSError as exc:
            _raise_unusable(what, "a certificate in PEM format and its private key", exc)


def _is_pem(value: str) -> bool:
    return "\n" in value or "-----BEGIN" in value


def _path_of(value: str, stack: ExitStack) -> str:
    """A path from which OpenSSL can read a value, until *stack* is closed."""
    if not _is_pem(value):
        return value
    # A directory that nobody else can enter: load_cert_chain reads files only.
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dask-tls-"))
    path = os.path.join(directory, "pem")
    with open(path, "w", encoding="ascii", opener=_open_private) as file:
        file.write(value)
    return path


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _raise_unusable(what: str, expected: str, exc: Exception) -> NoReturn:
    """Raise an error that names the field; OpenSSL's own does not even name the file."""
    if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError):
        raise type(exc)(exc.errno, f"cannot read {what}: {exc.strerror}") from exc
    raise ValueError(f"{what}: not {expected}: {exc}") from exc


def make_certificate() -> tuple[str, str]:
    """A new certificate that is its own authority, and its private key, as PEM texts.

    Raises
    ------
    ImportError
        If the package ``cryptography`` is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.x509.oid import NameOID
    except ImportError as exc:
        raise ImportError(
            "Using `Security.temporary` requires `cryptography`: install it, or this package with "
            "its extra `security`"
        ) from exc

    # RSA, as the ciphers that people list by name are mostly of that kind.
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_SIZE)
    public = key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dask-internal")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID_SINCE)
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("dask-internal")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return (
        cert.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )
