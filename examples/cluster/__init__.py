"""A cluster on the core, to copy from: see docs/cluster.rst.  For production, dask.distributed."""

from cluster.client import Client, Future
from cluster.scheduler import Scheduler
from cluster.state import KilledWorker, LostData
from cluster.worker import Nanny, Worker

__all__ = ["Client", "Future", "KilledWorker", "LostData", "Nanny", "Scheduler", "Worker"]
