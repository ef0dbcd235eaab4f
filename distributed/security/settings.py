"""Who may talk to whom, and how that is kept secret: certificates, keys, and a shared token.

A `Security` gathers these settings, from keywords and from the configuration, and turns them into
the keyword arguments that `distributed.comm.connect` and `distributed.comm.listen` need. It knows
neither transports nor messages; `distributed.comm.tls` is where its contexts are used, once per
connection.

Keys and tokens are secrets: no `repr` shows one.
"""

from __future__ import annotations

import html
import os
import ssl
from typing import Any, Final, Literal

from distributed.base import config
from distributed.security.certificates import load_authority, load_identity, make_certificate, shown

__all__ = ["Security"]

_ROLES: Final = ("client", "scheduler", "worker")

_VERSIONS: Final = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, None)
_CONFIGURED_VERSIONS: Final = dict(zip((1.2, 1.3, None), _VERSIONS, strict=True))

#: Fields whose values are files or their contents, and the configuration keys of these.
_FILE_FIELDS: Final = {
    "tls_ca_file": "distributed.comm.tls.ca-file",
    **{
        f"tls_{role}_{part}": f"distributed.comm.tls.{role}.{part}"
        for role in _ROLES
        for part in ("cert", "key")
    },
}


class Security:
    """How connections are encrypted and authenticated.

    What is not given is taken from the configuration, once, now.

    Parameters
    ----------
    require_encryption
        Whether unencrypted connections are refused. By default
        ``distributed.comm.require-encryption``; where that is null, true if any ``tls_…`` keyword
        is given.
    tls_ca_file
        Certificates of the authorities that peers' certificates must be signed by.
    tls_client_cert, tls_scheduler_cert, tls_worker_cert
        The certificate (chain) of each role.
    tls_client_key, tls_scheduler_key, tls_worker_key
        The private key of each role; None if the file of the certificate holds it too.
    tls_ciphers
        The ciphers that are allowed up to TLS 1.2, as OpenSSL writes them; by default those that
        Python considers safe.
    tls_min_version, tls_max_version
        An `ssl.TLSVersion`, of 1.2 and 1.3; by default at least 1.2.
    extra_conn_args
        Arguments for transports that need more, such as the headers of a websocket.
    token
        A secret that both ends of a connection share.

    Raises
    ------
    TypeError
        If a keyword is unknown, or has a value of the wrong type.
    ValueError
        If a version is not supported, or no version is left.

    Notes
    -----
    A certificate or key is given as the path of a PEM file, or as the PEM text itself.

    Peers prove that they have a certificate of the authority; which host they run on is not
    compared with the names in it. Give ``listen`` and ``connect`` an `ssl.SSLContext` of your own
    where that is needed.

    Examples
    --------
    >>> security = Security(tls_ca_file="/etc/dask/ca.pem", tls_client_cert="/etc/dask/me.pem")
    >>> security.require_encryption
    True
    >>> security
    Security(require_encryption=True, tls_ca_file=Local (/etc/dask/ca.pem), \
tls_client_cert=Local (/etc/dask/me.pem), tls_min_version=TLSv1_2)
    """

    __slots__ = (
        "extra_conn_args",
        "require_encryption",
        "tls_ca_file",
        "tls_ciphers",
        "tls_client_cert",
        "tls_client_key",
        "tls_max_version",
        "tls_min_version",
        "tls_scheduler_cert",
        "tls_scheduler_key",
        "tls_worker_cert",
        "tls_worker_key",
        "token",
    )

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
    extra_conn_args: dict[str, Any]
    token: str | bytes | None

    def __init__(self, require_encryption: bool | None = None, **kwargs: Any):
        unknown = sorted(set(kwargs) - set(self.__slots__))
        if unknown:
            known = ", ".join(sorted(self.__slots__))
            raise TypeError(f"Unknown parameters: {unknown} (known ones: {known})")
        if require_encryption is None:
            require_encryption = config.get_bool("distributed.comm.require-encryption")
        if require_encryption is None:
            require_encryption = any(
                name.startswith("tls_") and value is not None for name, value in kwargs.items()
            )
        self.require_encryption = require_encryption
        for name, key in {**_FILE_FIELDS, "tls_ciphers": "distributed.comm.tls.ciphers"}.items():
            setattr(self, name, _text(name, kwargs[name] if name in kwargs else config.get(key)))
        self.tls_min_version = _version("min", kwargs) or ssl.TLSVersion.TLSv1_2
        self.tls_max_version = _version("max", kwargs)
        if self.tls_max_version is not None and self.tls_max_version < self.tls_min_version:
            raise ValueError(
                f"no TLS version is left: tls_min_version={self.tls_min_version.name} is above "
                f"tls_max_version={self.tls_max_version.name}"
            )
        extra = kwargs.get("extra_conn_args")
        self.extra_conn_args = {} if extra is None else extra
        self.token = kwargs.get("token")

    @classmethod
    def temporary(cls, **kwargs: Any) -> Security:
        """Make a `Security` with a new key, and a certificate that is its own authority.

        It has to be handed to all who are to communicate; whoever has the same certificate and key
        is let in. It is meant for one session of processes that one person starts: the certificate
        is valid for a year.

        Parameters
        ----------
        **kwargs
            Further fields.

        Raises
        ------
        ImportError
            If the package ``cryptography`` is not installed.
        TypeError
            If a keyword is unknown, or one that is made here.
        """
        made_here = {*_FILE_FIELDS, "require_encryption"}
        if made := sorted(made_here & kwargs.keys()):
            raise TypeError(f"Security.temporary() makes these itself: {', '.join(made)}")
        cert, key = make_certificate()
        files = {name: key if name.endswith("_key") else cert for name in _FILE_FIELDS}
        return cls(require_encryption=True, **files, **kwargs)

    def get_tls_config_for_role(self, role: str) -> dict[str, Any]:
        """The TLS settings of a role.

        Parameters
        ----------
        role
            ``"client"``, ``"scheduler"`` or ``"worker"``.

        Returns
        -------
        dict
            ``ca_file``, ``ciphers``, ``cert`` and ``key``, each None where it is not set.

        Raises
        ------
        ValueError
            If there is no such role.
        """
        if role not in _ROLES:
            raise ValueError(f"unknown role {role!r}")
        return {
            "ca_file": self.tls_ca_file,
            "ciphers": self.tls_ciphers,
            "cert": getattr(self, f"tls_{role}_cert"),
            "key": getattr(self, f"tls_{role}_key"),
        }

    def get_connection_args(self, role: str) -> dict[str, Any]:
        """The keyword arguments with which a role connects.

        Parameters
        ----------
        role
            ``"client"``, ``"scheduler"`` or ``"worker"``.

        Returns
        -------
        dict
            ``ssl_context`` (None unless both an authority and a certificate of the role are set),
            ``require_encryption`` and ``extra_conn_args``; ``token`` if there is one.

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            If there is no such role, or a certificate, key or cipher is no such thing.
        """
        return {
            "ssl_context": self._get_tls_context(role, ssl.PROTOCOL_TLS_CLIENT),
            "require_encryption": self.require_encryption,
            "extra_conn_args": self.extra_conn_args,
            **self._get_token(),
        }

    def get_listen_args(self, role: str) -> dict[str, Any]:
        """The keyword arguments with which a role listens.

        As `get_connection_args`, without ``extra_conn_args``.
        """
        return {
            "ssl_context": self._get_tls_context(role, ssl.PROTOCOL_TLS_SERVER),
            "require_encryption": self.require_encryption,
            **self._get_token(),
        }

    def _get_token(self) -> dict[str, Any]:
        return {} if self.token is None else {"token": self.token}

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
                raise ValueError(f"tls_ciphers={tls['ciphers']!r} names no cipher: {exc}") from exc
        load_authority(context, tls["ca_file"], _described("tls_ca_file", tls["ca_file"]))
        identity = _described(f"tls_{role}_cert", tls["cert"])
        if tls["key"]:
            identity += " and " + _described(f"tls_{role}_key", tls["key"])
        load_identity(context, tls["cert"], tls["key"], identity)
        return context

    def _fields(self) -> dict[str, str]:
        """The fields that are set, as they may be shown to anybody."""
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
    """The value of a field that holds text or a path."""
    if value is None or isinstance(value, str):
        return value
    if name in _FILE_FIELDS and isinstance(value, os.PathLike):
        path = os.fspath(value)
        return path if isinstance(path, str) else os.fsdecode(path)
    raise TypeError(f"{name} must be a str, not {type(value).__name__!r}")


def _version(bound: Literal["min", "max"], kwargs: dict[str, Any]) -> ssl.TLSVersion | None:
    """The lowest or highest TLS version, by keyword or by configuration."""
    name = f"tls_{bound}_version"
    if name in kwargs:
        version = kwargs[name]
        if version not in _VERSIONS:
            raise ValueError(
                f"{name}={version!r} is not supported, expected one of {list(_VERSIONS)}"
            )
        return None if version is None else ssl.TLSVersion(version)
    key = f"distributed.comm.tls.{bound}-version"
    version = config.get(key)
    try:
        return _CONFIGURED_VERSIONS[version]
    except (KeyError, TypeError):
        raise ValueError(
            f"{key}={version!r} is not supported, expected one of {[None, 1.2, 1.3]}"
        ) from None


def _described(name: str, value: str) -> str:
    """A field with its value and configuration key, for an error."""
    return f"{name}={shown(value)} (configuration key {_FILE_FIELDS[name]!r})"
