"""Who may connect, and how connections are encrypted: :class:`Security` and certificates."""

from distributed.security.settings import Security

__all__ = ["Security"]
