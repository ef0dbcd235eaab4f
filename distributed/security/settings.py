"""Settings for the encryption and authentication of connections.

`Security` reads them from keywords and the configuration, and returns them as keyword arguments
for `distributed.comm.connect` and `distributed.comm.listen`. It does not depend on transports or
messages; `distributed.comm.tls` uses its SSL contexts.

Keys and tokens are secrets, and no `repr` contains one.
"""

from __future__ import annotations

import html
import os
import ssl
from collections.abc import Mapping
from typing import Any, Final, Literal

from distributed.base import config
from distributed.base.arguments import check_flag, did_you_mean, warn_of_guessable
from distributed.security.certificates import load_authority, load_identity, make_certificate, shown

__all__ = ["Security"]

_ROLES: Final = ("client", "scheduler", "worker")
#: The roles in which an object without a role of its own listens and connects, by preference.
_ROLES_TO_LISTEN: Final = ("scheduler", "worker", "client")
_ROLES_TO_CONNECT: Final = ("client", "worker", "scheduler")

_VERSIONS: Final = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, None)
_CONFIGURED_VERSIONS: Final = dict(zip((1.2, 1.3, None), _VERSIONS, strict=True))

#: Field with a path or PEM text → its configuration key.
_FILE_FIELDS: Final = {
    "tls_ca_file": "distributed.comm.tls.ca-file",
    **{
        f"tls_{role}_{part}": f"distributed.comm.tls.{role}.{part}"
        for role in _ROLES
        for part in ("cert", "key")
    },
}


class Security:
    """Settings for encrypted and authenticated connections.

    The defaults are read from the configuration when the object is created.

    Parameters
    ----------
    require_encryption
        Whether to refuse unencrypted connections. Default:
        ``distributed.comm.require-encryption``; if that is null, whether any ``tls_…`` keyword is
        given.
    tls_ca_file
        Certificates of the authorities that sign the certificates of peers.
    tls_client_cert, tls_scheduler_cert, tls_worker_cert
        The certificate (chain) of each role.
    tls_client_key, tls_scheduler_key, tls_worker_key
        The private key of each role; None if it is in the file of the certificate.
    tls_ciphers
        The ciphers to allow up to TLS 1.2, in OpenSSL's syntax. Default: those of Python.
    tls_min_version, tls_max_version
        `ssl.TLSVersion.TLSv1_2` or ``TLSv1_3``. Default: at least 1.2.
    extra_conn_args
        More arguments for a transport, such as the headers of a websocket.
    token
        A secret that both sides of a connection share, at least 16 characters chosen at random.

    Raises
    ------
    TypeError
        If a keyword is unknown, or has a value of the wrong type.
    ValueError
        If a version is not supported, the minimum is above the maximum, or the token is empty.

    Warns
    -----
    UserWarning
        If the token is so short that it can be guessed.

    Notes
    -----
    A certificate or key is the path of a PEM file, or the PEM text itself.

    Peers must have a certificate signed by the authority, but its host names are not checked. Pass
    your own `ssl.SSLContext` to ``listen`` and ``connect`` to check them.

    Examples
    --------
    >>> security = Security(tls_ca_file="/etc/dask/ca.pem", tls_client_cert="/etc/dask/me.pem")
    >>> security.require_encryption
    True
    >>> security
    Security(require_encryption=True, tls_ca_file=Local (/etc/dask/ca.pem), \
tls_client_cert=Local (/etc/dask/me.pem), tls_min_version=TLSv1_2)
    """

    require_encryption: bool
    tls_ca_file: str | None
    tls_ciphers: str | None
    tls_min_version: ssl.TLSVersion
    tls_max_version: ssl.TLSVersion | None
    tls_client_cert: str | None
    tls_client_key: str | None
    tls_scheduler_cert: str | None
    tls_scheduler_key: str | None
    tls_worker_cert: str | None
    tls_worker_key: str | None
    extra_conn_args: Mapping[str, Any]
    token: str | bytes | None

    # Setting any other attribute is an error.
    __slots__ = tuple(__annotations__)

    def __init__(self, require_encryption: bool | None = None, **kwargs: Any):
        unknown = sorted(set(kwargs) - set(self.__slots__))
        if unknown:
            known = ", ".join(sorted(self.__slots__))
            raise TypeError(
                f"Unknown parameters: {unknown}; {did_you_mean(unknown[0], self.__slots__)} "
                f"(known ones: {known})"
            )
        require_encryption = check_flag("require_encryption", require_encryption)
        if require_encryption is None:
            require_encryption = config.get_bool("distributed.comm.require-encryption")
        if require_encryption is None:
            require_encryption = any(
                name.startswith("tls_") and value is not None for name, value in kwargs.items()
            )
        self.require_encryption = require_encryption
        for name, key in {**_FILE_FIELDS, "tls_ciphers": "distributed.comm.tls.ciphers"}.items():
            setattr(self, name, _text(name, kwargs[name] if name in kwargs else config.read(key)))
        self.tls_min_version = _version("min", kwargs) or ssl.TLSVersion.TLSv1_2
        self.tls_max_version = _version("max", kwargs)
        if self.tls_max_version is not None and self.tls_max_version < self.tls_min_version:
            raise ValueError(
                f"no TLS version is allowed: tls_min_version={self.tls_min_version.name} is above "
                f"tls_max_version={self.tls_max_version.name}"
            )
        extra = kwargs.get("extra_conn_args")
        if extra is not None and not isinstance(extra, Mapping):
            raise TypeError(f"extra_conn_args must be a dict, not {extra!r}")
        self.extra_conn_args = {} if extra is None else extra
        self.token = _token(kwargs.get("token"))

    @classmethod
    def temporary(cls, **kwargs: Any) -> Security:
        """Create a `Security` with a new key and a self-signed certificate for all roles.

        Every process that communicates needs this object; any process with its key can connect.
        It is meant for one session of one user: the certificate is valid for a year.

        Parameters
        ----------
        **kwargs
            Other fields.

        Raises
        ------
        ImportError
            If the package ``cryptography`` is not installed.
        TypeError
            If a keyword is unknown, or one that this method sets.
        """
        if given := sorted({*_FILE_FIELDS, "require_encryption"} & kwargs.keys()):
            raise TypeError(f"Security.temporary() sets these itself: {', '.join(given)}")
        cert, key = make_certificate()
        files = {name: key if name.endswith("_key") else cert for name in _FILE_FIELDS}
        return cls(require_encryption=True, **files, **kwargs)

    def default_role(self, side: Literal["connect", "listen"]) -> str:
        """Return the role of a side of a connection, for callers that do not state one.

        It is the first role that has a certificate: of scheduler, worker, client for ``"listen"``,
        of client, worker, scheduler for ``"connect"``.
        """
        roles = _ROLES_TO_LISTEN if side == "listen" else _ROLES_TO_CONNECT
        return next((role for role in roles if getattr(self, f"tls_{role}_cert")), roles[0])

    def get_tls_config_for_role(self, role: str) -> dict[str, Any]:
        """Return the TLS settings of a role.

        Parameters
        ----------
        role
            ``"client"``, ``"scheduler"`` or ``"worker"``.

        Returns
        -------
        dict
            ``ca_file``, ``ciphers``, ``cert`` and ``key``; None for those that are not set.

        Raises
        ------
        ValueError
            If the role is unknown.
        """
        if role not in _ROLES:
            raise ValueError(f"unknown role {role!r}; {did_you_mean(role, _ROLES)}")
        return {
            "ca_file": self.tls_ca_file,
            "ciphers": self.tls_ciphers,
            "cert": getattr(self, f"tls_{role}_cert"),
            "key": getattr(self, f"tls_{role}_key"),
        }

    def get_connection_args(self, role: str) -> dict[str, Any]:
        """Return the keyword arguments for `distributed.comm.connect` of a role.

        Parameters
        ----------
        role
            ``"client"``, ``"scheduler"`` or ``"worker"``.

        Returns
        -------
        dict
            ``ssl_context`` (None unless both the authority and a certificate of the role are set),
            ``require_encryption`` and ``extra_conn_args``; ``token`` if it is set.

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            If the role is unknown, or a certificate, key or cipher is malformed.
        """
        args = self._get_args(role, ssl.PROTOCOL_TLS_CLIENT)
        return {**args, "extra_conn_args": self.extra_conn_args}

    def get_listen_args(self, role: str) -> dict[str, Any]:
        """Return the keyword arguments for `distributed.comm.listen` of a role.

        They are those of `get_connection_args` without ``extra_conn_args``.
        """
        return self._get_args(role, ssl.PROTOCOL_TLS_SERVER)

    def _get_args(self, role: str, protocol: ssl._SSLMethod) -> dict[str, Any]:
        return {
            "ssl_context": self._get_tls_context(role, protocol),
            # Fields can be set later.
            "require_encryption": check_flag("require_encryption", self.require_encryption),
            **({} if self.token is None else {"token": self.token}),
        }

    def _get_tls_context(self, role: str, protocol: ssl._SSLMethod) -> ssl.SSLContext | None:
        tls = self.get_tls_config_for_role(role)
        if not tls["ca_file"] or not tls["cert"]:
            return None
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = self.tls_min_version
        if self.tls_max_version is not None:
            context.maximum_version = self.tls_max_version
        if tls["ciphers"]:
            try:
                context.set_ciphers(tls["ciphers"])
            except ssl.SSLError as exc:
                raise ValueError(f"tls_ciphers={tls['ciphers']!r} is not valid: {exc}") from exc
        load_authority(context, tls["ca_file"], _described("tls_ca_file", tls["ca_file"]))
        identity = _described(f"tls_{role}_cert", tls["cert"])
        if tls["key"]:
            identity += " and " + _described(f"tls_{role}_key", tls["key"])
        load_identity(context, tls["cert"], tls["key"], identity)
        return context

    def _fields(self) -> dict[str, str]:
        """Return the fields that are set, as text without secrets."""
        fields = {"require_encryption": str(self.require_encryption)}
        for name in sorted(self.__slots__):
            value = getattr(self, name)
            if name.endswith("_version") and value is not None:
                fields[name] = value.name
            elif name in _FILE_FIELDS and value:
                fields[name] = shown(value)
            elif name == "tls_ciphers" and value:
                fields[name] = value
            elif name == "token" and value:
                fields[name] = "Set (not shown)"
        return fields

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value}" for name, value in self._fields().items())
        return f"{type(self).__name__}({fields})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align: left;">{name}</th>'
            f'<td style="text-align: left;">{html.escape(value)}</td></tr>'
            for name, value in self._fields().items()
        )
        return f"<div><h3>{type(self).__name__}</h3><table>{rows}</table></div>"


def _text(name: str, value: Any) -> str | None:
    """Return the value of a field for text or a path; raise TypeError if it is anything else."""
    if value is None or isinstance(value, str):
        return value
    if name in _FILE_FIELDS and isinstance(value, os.PathLike):
        path = os.fspath(value)
        return path if isinstance(path, str) else os.fsdecode(path)
    raise TypeError(f"{name} must be a str, not {type(value).__name__!r}")


def _token(token: Any) -> str | bytes | None:
    """Return a token; refuse one that every peer would know, and warn of one that is short."""
    if token is None:
        return None
    if not isinstance(token, str | bytes):
        raise TypeError(f"token must be text or bytes, not {type(token).__name__}")
    if not token.strip():
        raise ValueError("token must not be empty: every peer would know it")
    warn_of_guessable(token, stacklevel=3)
    return token


def _version(bound: Literal["min", "max"], kwargs: dict[str, Any]) -> ssl.TLSVersion | None:
    """Return the minimum or maximum TLS version, from the keywords or the configuration."""
    name = f"tls_{bound}_version"
    if name in kwargs:
        version = kwargs[name]
        if version not in _VERSIONS:
            raise ValueError(
                f"{name}={version!r} is not supported, expected one of {list(_VERSIONS)}"
            )
        return None if version is None else ssl.TLSVersion(version)
    return _CONFIGURED_VERSIONS[config.read(f"distributed.comm.tls.{bound}-version")]


def _described(name: str, value: str) -> str:
    """Return a field with its value and configuration key, for an error."""
    return f"{name}={shown(value)} (configuration key {_FILE_FIELDS[name]!r})"
