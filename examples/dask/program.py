"""A dask program: a local cluster, an array with a progress bar, the dashboard, a version check.

It uses nothing but dask and runs unchanged on dask.distributed as released and on this core:
``python program.py [PROTOCOL]``.  The last line it prints is the time in seconds that the
computations took.
"""

from __future__ import annotations

import sys
import time
import urllib.request

import dask.array as da

from distributed import Client, LocalCluster, progress, wait


def main(protocol: str) -> None:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, protocol=protocol, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        print(f"scheduler  {cluster.scheduler_address}")
        print(f"dashboard  {client.dashboard_link}")
        with urllib.request.urlopen(client.dashboard_link, timeout=30) as page:
            print(f"/status    {page.status} {page.reason}, {len(page.read())} bytes")
        versions = client.get_versions(check=True)
        print(f"versions   {versions['scheduler']['packages']['distributed']}, consistent")

        array = da.random.default_rng(0).random((8_000, 8_000), chunks=(1_000, 1_000)).persist()
        wait(array)
        start = time.perf_counter()
        total = (array + array.T).sum().persist()
        progress(total, notebook=False)
        print(f"\nsum        {total.compute():.3f}")
        increments = client.map(lambda x: x + 1, range(2_000), pure=False)
        print(f"tasks      {sum(client.gather(increments))}")
        print(f"{time.perf_counter() - start:.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tcp")
