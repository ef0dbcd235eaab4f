"""Encryption and authentication of connections: :class:`Security` and certificates."""

from distributed.security.settings import Security

__all__ = ["Security"]
