"""The settings of the pages, from the section ``distributed.pages`` of the configuration."""

from __future__ import annotations

from typing import NamedTuple

from distributed.base import config

__all__ = ["Settings"]


class Settings(NamedTuple):
    """The settings of the pages of one server, read when its port opens."""

    #: Seconds between two snapshots for the browsers that watch.
    interval: float
    #: Maximum number of browsers that watch; None for no maximum.
    max_watchers: int | None
    #: Maximum number of HTTP connections; None for no maximum.
    max_connections: int | None
    #: Maximum number of bytes of a request's headers.
    max_header_size: int
    #: Seconds for a client to send its request, and to receive the answer.
    timeout: float
    #: Whether clients on other hosts get the pages without a token or a certificate.
    public: bool

    @classmethod
    def configured(cls) -> Settings:
        """Return the settings of the configuration.

        Raises
        ------
        ValueError
            If a value makes no sense.
        """
        return cls(
            interval=config.read("distributed.pages.interval"),
            max_watchers=config.get_int("distributed.pages.max-watchers"),
            max_connections=config.get_int("distributed.pages.max-connections"),
            max_header_size=config.read("distributed.pages.max-header-size"),
            timeout=config.read("distributed.pages.timeout"),
            public=config.read("distributed.pages.public"),
        )
