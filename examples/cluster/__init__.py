"""A cluster on `distributed.core`, to copy from (docs/explanation/cluster.rst).  Not for production use."""

from cluster.client import Client, Future
from cluster.scheduler import Scheduler
from cluster.state import KilledWorker, LostData
from cluster.worker import Nanny, Worker

__all__ = ["Client", "Future", "KilledWorker", "LostData", "Nanny", "Scheduler", "Worker"]
