"""Pages about a running server, over HTTP: a live page, probes, figures and metrics.

:class:`Pages` is a service for ``distributed.core.run``.  It opens an HTTP port, or shares the one
of a ``ws://`` listener (:mod:`~distributed.pages.service`).  A request passes the checks of
:mod:`~distributed.pages.access`, and a handler of :mod:`~distributed.pages.handlers` answers it.
:mod:`~distributed.pages.updates` sends one snapshot of the server's figures to all browsers that
watch.
"""

from distributed.pages.service import Pages

__all__ = ["Pages"]
