"""Loading certificates and private keys into an `ssl.SSLContext`, and creating temporary ones.

A certificate or key is the path of a PEM file, or the PEM text itself. A key given as text is
written to disk, readable only by this user, while OpenSSL reads it. No message contains a key.

`distributed.security.settings` selects the certificates of a context, once per context; this
module does not depend on roles.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import ssl
import tempfile
from contextlib import ExitStack
from typing import Any, Final, NoReturn

#: Base64 text that may be a key in one line without its PEM header.
_LOOKS_LIKE_KEY: Final = re.compile(r"[A-Za-z0-9+/=]{60,}")

#: Number of bits of a temporary key.
_KEY_SIZE: Final = 2048
#: Validity of a temporary certificate, before now (for hosts with slow clocks) and after now.
_VALID_SINCE: Final = datetime.timedelta(days=1)
_VALID_FOR: Final = datetime.timedelta(days=365)


def shown(value: str) -> str:
    """Return the source of a certificate or key, for messages: its path, but never its text."""
    if _is_pem(value) or _LOOKS_LIKE_KEY.fullmatch(value):
        return "Temporary (In-memory)"
    return f"Local ({os.path.abspath(value)})"


def load_authority(context: ssl.SSLContext, ca_file: str, what: str) -> None:
    """Make a context accept peers whose certificates are signed by an authority in *ca_file*.

    Parameters
    ----------
    context
        The context to change.
    ca_file
        The certificates of the authorities: a path or PEM text.
    what
        The name of *ca_file* in errors.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it does not contain a certificate.
    """
    try:
        if _is_pem(ca_file):
            context.load_verify_locations(cadata=ca_file)
        else:
            context.load_verify_locations(cafile=ca_file)
    except (OSError, ValueError) as exc:
        _raise_unusable(what, "certificates in PEM format", exc)


def load_identity(context: ssl.SSLContext, cert: str, key: str | None, what: str) -> None:
    """Set the certificate that a context presents to peers.

    Parameters
    ----------
    context
        The context to change.
    cert, key
        The certificate (chain) and its private key: paths or PEM texts. If *key* is None, the key
        is in *cert*.
    what
        The name of *cert* and *key* in errors.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If they are not a certificate and its key, or the key is encrypted.
    """

    def no_passphrase() -> NoReturn:
        # OpenSSL would otherwise prompt on the terminal and block.
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
    """Return the path of a file with *value*, which exists until *stack* is closed."""
    if not _is_pem(value):
        return value
    # load_cert_chain accepts only files. Other users cannot enter this directory.
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dask-tls-"))
    path = os.path.join(directory, "pem")
    with open(path, "w", encoding="ascii", opener=_open_private) as file:
        file.write(value)
    return path


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _raise_unusable(what: str, expected: str, exc: Exception) -> NoReturn:
    """Raise an error that names the field, because OpenSSL's error does not name the file."""
    if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError):
        raise type(exc)(exc.errno, f"cannot read {what}: {exc.strerror}") from exc
    raise ValueError(f"{what}: not {expected}: {exc}") from exc


def make_certificate(*names: str, purpose: str = "Using `Security.temporary`") -> tuple[str, str]:
    """Return a new self-signed certificate and its private key, as PEM texts.

    Parameters
    ----------
    *names
        Host names and IP addresses for which the certificate is valid; default: ``dask-internal``.
    purpose
        What needs the certificate, for the error.

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
            f"{purpose} requires `cryptography`: install it, or this package with "
            "its extra `security`"
        ) from exc

    # RSA, because most ciphers that users list by name need it.
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_SIZE)
    public = key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dask-internal")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    hosts = [_general_name(x509, name) for name in names or ("dask-internal",)]
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID_SINCE)
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
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


def _general_name(x509: Any, name: str) -> Any:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
