"""A cluster in a few hundred lines: an example of roles built on the core, to copy from.

For production scheduling, run dask.distributed.  ``docs/cluster.rst`` tells how this works.
"""

from cluster.client import Client, Future
from cluster.nanny import Nanny
from cluster.peer import Peer
from cluster.scheduler import Scheduler
from cluster.state import KilledWorker, LostData
from cluster.worker import Worker

__all__ = ["Client", "Future", "KilledWorker", "LostData", "Nanny", "Peer", "Scheduler", "Worker"]
