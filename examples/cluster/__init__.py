"""A cluster to copy from, not for production use.  ``docs/explanation/cluster.rst`` explains it."""

from cluster.client import Client, Future
from cluster.scheduler import Scheduler
from cluster.state import KilledWorker, LostData
from cluster.worker import Nanny, Worker

__all__ = ["Client", "Future", "KilledWorker", "LostData", "Nanny", "Scheduler", "Worker"]
