"""The cases: what is measured, of which contestants, and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

CORE = ("ours", "original")
UVLOOP = ("ours uvloop", "original uvloop")
BOTH_LOOPS = (*CORE, *UVLOOP)
DASK = ("dask on core", "dask")
PEERS = ("grpc", "ray", "xoscar", "frisky")

#: Libraries that are measured on request only, in a table of their own.
LIBRARIES = ("pyzmq", "rpyc", "pyro5")

#: The contestants of the workloads; the first is the one that the others are compared with.
WORKERS = ("dask", "dask on core", "dask on core unix", "dask on core shared", "ray", "frisky")

TRANSPORTS = ("tcp", "tls", "unix", "ws", "inproc")

#: For cases that are measured for completeness: less often, and not in a quick run.
BRIEFLY: Mapping[str, Any] = {"seconds": 0.3, "rounds": 2, "quick": False}

SIZES = {
    "10kB": 10_000,
    "100kB": 100_000,
    "1MB": 1_000_000,
    "100MB": 100_000_000,
    "1GB": 1_000_000_000,
}


@dataclass(frozen=True)
class Case:
    """A measurement of several contestants."""

    name: str
    contestants: tuple[str, ...]
    command: Mapping[str, Any] = field(default_factory=dict)
    transport: str = "tcp"
    seconds: float = 0.6  #: number of seconds of a slice in a full run
    cores: int = 2  #: number of cores that server and client share
    rounds: int = 100  #: maximum number of rounds in which it is measured
    quick: bool = True  #: whether it is part of a quick run
    how: str = "slice"  #: the kind of measurement: "slice", "memory", "import", "flat" or "cluster"


def _calls() -> Iterator[Case]:
    sequential = {"command": "sequential"}
    others = (*UVLOOP, *PEERS, "iostream", "sockets")
    for transport in TRANSPORTS:
        contestants = (*_with_transport(transport), *(others if transport == "tcp" else ()))
        yield Case(f"sequential/{transport}", contestants, sequential, transport)
    yield Case("sequential on one core/tcp", (*CORE, *others), sequential, cores=1)
    for name, size in (("small call", 0), ("100kB array", 100_000), ("1MB array", 1_000_000)):
        anatomy = {"command": "anatomy", "size": size}
        yield Case(f"anatomy/{name}/tcp", CORE, anatomy, quick=False)
    for callers in (1, 8, 64, 512):
        for how, command in (("pooled", "pooled"), ("one connection", "taking_turns")):
            yield Case(
                f"concurrent/{callers} {how}/tcp",
                BOTH_LOOPS if how == "pooled" else CORE,
                {"command": command, "callers": callers},
                quick=how == "pooled" and callers != 1,
            )
    for transport in TRANSPORTS[1:]:
        yield Case(
            f"concurrent/64 pooled/{transport}",
            _with_transport(transport),
            {"command": "pooled", "callers": 64},
            transport,
            quick=False,
        )


def _libraries() -> Iterator[Case]:
    """Yield the cases of the table ``libraries``."""
    for cores, name in ((2, "sequential"), (1, "sequential on one core")):
        contestants = (*CORE, *LIBRARIES)
        yield Case(f"libraries/{name}/tcp", contestants, {"command": "sequential"}, cores=cores)


def _payloads() -> Iterator[Case]:
    for kind in ("bytes", "array"):
        for size_name, size in SIZES.items():
            for transport in TRANSPORTS:
                contestants = _with_transport(transport)
                if kind == "array" and transport in ("tcp", "unix"):
                    contestants += ("sockets",)
                if transport == "tcp":
                    contestants += ("memory",) if kind == "array" else ()
                    contestants += UVLOOP if size < SIZES["1GB"] else ()
                large = size >= SIZES["100MB"]
                huge = size > SIZES["100MB"]
                chosen = transport == "tcp" or (transport == "unix" and large)
                yield Case(
                    f"payload/{kind} {size_name}/{transport}",
                    contestants,
                    {"command": "payload", "size": size, "kind": kind},
                    transport,
                    seconds=(2.4 if chosen else 0.6) if large else (0.6 if chosen else 0.3),
                    rounds=1 if huge else 5 if large and chosen else 100 if chosen else 2,
                    quick=chosen and not huge,
                )


def _connections() -> Iterator[Case]:
    """Yield cases in which calls do not have one connection that all of them have warmed up."""
    for how, command, sizes in (
        ("after a burst", "after_burst", ("100kB", "1MB", "100MB")),
        ("cold", "cold", ("1MB", "100MB")),
    ):
        for size_name in sizes:
            size = SIZES[size_name]
            large = size >= SIZES["100MB"]
            yield Case(
                f"{how}/array {size_name}/tcp",
                CORE,
                {"command": command, "size": size},
                seconds=4.0 if large else 1.2,
                rounds=5 if large else 100,
                quick=size_name == "1MB",
            )


def _others() -> Iterator[Case]:
    for size_name in ("1MB", "100MB"):
        command: dict[str, Any] = {"command": "shared_memory", "size": SIZES[size_name]}
        yield Case(f"shared memory/array {size_name}/unix", CORE[:1], command, "unix")
    for wrapped in (False, True):
        how = "wrapped" if wrapped else "plain"
        command = {"command": "floats", "count": 100_000, "wrapped": wrapped}
        yield Case(f"messages/100k floats, {how}/tcp", CORE, command, rounds=3)
    for name, command in (
        ("messages/10k nested values", {"command": "nested", "count": 10_000}),
        ("messages/1k arrays", {"command": "arrays", "count": 1_000}),
        ("batched", {"command": "batched"}),
        ("streamed", {"command": "streamed"}),
        ("connections/1 at once", {"command": "connections", "callers": 1}),
        ("connections/8 at once", {"command": "connections", "callers": 8}),
    ):
        for transport in TRANSPORTS:
            known = {"quick": name != "connections/8 at once"} if transport == "tcp" else BRIEFLY
            if transport == "tls" and name == "connections/1 at once":
                known = {}
            contestants = BOTH_LOOPS if transport == "tcp" else _with_transport(transport)
            if name == "streamed":
                contestants = tuple(it for it in contestants if it.startswith("ours"))
            yield Case(f"{name}/{transport}", contestants, command, transport, **known)
    for transport in TRANSPORTS:
        yield Case(
            f"memory/per idle connection/{transport}",
            _with_transport(transport),
            transport=transport,
            rounds=3 if transport == "tcp" else 1,
            quick=transport == "tcp",
            how="memory",
        )
    yield Case("import/distributed.core", CORE, how="import")
    yield Case("flat/tcp", CORE, rounds=3, how="flat")
    for transport in TRANSPORTS[1:]:
        yield Case(
            f"flat/{transport}", CORE[:1], transport=transport, rounds=1, quick=False, how="flat"
        )


def _under_load() -> Iterator[Case]:
    for codec in ("lz4", "zstd"):
        yield Case(
            f"small calls beside 100MB of {codec}/tcp",
            CORE,
            {"command": "compressed", "size": SIZES["100MB"], "codec": codec},
            "tcp to another host",
            seconds=3.0,
            quick=codec == "lz4",
        )
    for count in (1, 10, 100, 1_000):
        yield Case(
            f"batched/{count} at once/tcp",
            CORE,
            {"command": "streams", "count": count},
            quick=count == 1_000,
        )


def _dask() -> Iterator[Case]:
    """Yield cases whose program runs on a cluster of its own: its size, and its protocol."""
    for name, program, size, protocol, quick in (
        ("5,000 tiny tasks, threads", "tiny_tasks", 5_000, "inproc", True),
        ("1 GB between workers", "transfer", 1_000_000_000, "tcp", True),
    ):
        command = {"command": "run", "program": program, "size": size}
        yield Case(
            f"dask/{name}/{protocol}", DASK, command, protocol, 3.0, quick=quick, how="cluster"
        )


def _workloads() -> Iterator[Case]:
    """Yield programs of dask's users, on clusters of two worker processes."""
    for name, program, size in (
        ("5,000 tiny tasks", "tiny_tasks", 5_000),
        ("transpose and add, 1 GB", "transpose", 1_000_000_000),
        ("dataframe shuffle, 200 MB", "shuffle", 200_000_000),
    ):
        command = {"command": "run", "program": program, "size": size}
        yield Case(f"workloads/{name}", WORKERS, command, seconds=3.0, rounds=5, how="cluster")


def _memory_of_workers() -> Iterator[Case]:
    """Yield a program that gives one array to all worker processes of a host."""
    contestants = tuple(name for name in WORKERS if name not in ("dask on core unix", "frisky"))
    command = {"command": "hold", "size": 256_000_000}
    yield Case("memory/256 MB array on 4 workers", contestants, command, rounds=3, how="cluster")


def _with_transport(transport: str) -> tuple[str, ...]:
    """Return the contestants that have *transport*: this project, and mostly the original."""
    return CORE if transport != "unix" else CORE[:1]


#: Tables of cases: the one of a default run, and those that are made on request.
TABLES = ("main", "libraries")


def cases(*, quick: bool, table: str = "main") -> list[Case]:
    """Return the cases of a table in the order of their measurement."""
    if table == "libraries":
        return list(_libraries())
    every = [
        *_calls(),
        *_payloads(),
        *_connections(),
        *_others(),
        *_under_load(),
        *_dask(),
        *_workloads(),
        *_memory_of_workers(),
    ]
    return [_for_quick_run(case) for case in every if case.quick] if quick else every


def _for_quick_run(case: Case) -> Case:
    if case.name.startswith("sequential"):
        return case
    if case.name.startswith("workloads"):
        return replace(case, rounds=1)
    return replace(case, contestants=tuple(name for name in case.contestants if name not in UVLOOP))
