"""The data of the workloads, and the programs that use dask's collections.

dask.distributed and frisky run the same programs; Ray has its own on the same data.  *keep* is a
function that computes a collection and returns it with its chunks on the workers.  Libraries are
imported where they are used, so that a worker which imports this module starts fast.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Result = dict[str, Any]

#: Number of rows and of columns in a chunk of an array (8 MB).
CHUNK = 1_000

#: Columns of a dataframe: keys, and four columns of floats.  Each value has eight bytes.
KEY, COLUMNS = "key", ("a", "b", "c", "d")
ROW = 8 * (1 + len(COLUMNS))

#: Number of partitions of a dataframe before and after the shuffle.
PARTITIONS = 20

#: Number of different keys of a dataframe.
KEYS = 10_000

#: Share of a program's size for its warm-up, which is not measured.
WARM_UP = 0.1

#: Number of worker processes that hold the same array.
HOLDERS = 4


def seconds_of(call: Callable[[], Any]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


def memory_of_family() -> int:
    """Return the memory of this process and its descendants in bytes.

    It is the sum of their proportional set sizes (PSS): memory that several processes share counts
    once.
    """
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name of the program, in parentheses, may contain anything.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while found := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= found
    total = 0
    for pid in family:
        with suppress(FileNotFoundError, ProcessLookupError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += 1024 * int(rollup.partition("\nPss:")[2].split()[0])
    return total


def memory_added_by(give: Callable[[], Any]) -> Result:
    """Return the memory of this process and its descendants, and what *give* adds, in bytes."""
    before = memory_of_family()
    given = give()
    total = memory_of_family()
    del given
    return {"added": total - before, "total": total}


def sum_of_pages(array: np.ndarray) -> float:
    """Read each page of an array, so that it is resident."""
    return float(array[:: 4096 // array.itemsize].sum())


def repeat(execute: Callable[[int], float], size: int, seconds: float) -> Result:
    """Execute a program until *seconds* have been measured, at least once, after a warm-up.

    Parameters
    ----------
    execute : callable
        Called with the size; returns its seconds, without preparing the data.
    size : int
        The size: a number of tasks or of bytes.
    seconds : float
        Seconds after which the program is not executed again.
    """
    execute(round(size * WARM_UP))
    times = [execute(size)]
    while sum(times) < seconds:
        times.append(execute(size))
    median = statistics.median(times)
    return {"count": len(times), "rate": 1 / median, "seconds": median}


def increment(x: int) -> int:
    return x + 1


def chunks_per_side(size: int) -> int:
    """Return the number of chunks in a row of a square array of *size* bytes; at least two."""
    return max(2, round((size / 8) ** 0.5 / CHUNK))


def rows_per_partition(size: int) -> int:
    """Return the number of rows in a partition of a dataframe of *size* bytes."""
    return max(1, size // ROW // PARTITIONS)


def chunk(seed: int) -> np.ndarray:
    """Return a chunk of an array, with random numbers."""
    import numpy as np

    return np.random.default_rng(seed).random((CHUNK, CHUNK))


def partition(seed: int, rows: int) -> pd.DataFrame:
    """Return a partition of a dataframe, with random keys and numbers."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(seed)
    columns = {name: random.random(rows) for name in COLUMNS}
    return pd.DataFrame({KEY: random.integers(0, KEYS, rows), **columns})


def transpose(size: int, keep: Callable[[Any], Any]) -> float:
    """Add an array of *size* bytes to its transpose; half of that is on the other worker."""
    import dask.array

    width = chunks_per_side(size) * CHUNK
    array = keep(dask.array.random.random((width, width), chunks=(CHUNK, CHUNK)))
    return seconds_of(lambda: (array + array.T).sum().compute())


def shuffle(size: int, keep: Callable[[Any], Any]) -> float:
    """Move the rows of a dataframe of *size* bytes into partitions by their keys."""
    import dask.dataframe

    rows = rows_per_partition(size)
    frame = keep(dask.dataframe.from_map(partition, range(PARTITIONS), rows=rows))
    lengths: list[Any] = []

    def run() -> None:
        lengths.extend(frame.shuffle(KEY).map_partitions(len).compute())

    taken = seconds_of(run)
    assert sum(lengths) == rows * PARTITIONS, lengths
    return taken
