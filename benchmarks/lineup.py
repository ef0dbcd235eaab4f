"""Who is measured: which program, in which environment, prepared how.

Peers beside this project and the original do the sequential small calls only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed.tests.environments import ORIGINAL, ROOT, environment

CERTIFICATES = ROOT / "distributed" / "tests" / "data" / "tls"

#: How many idle connections, handlers and calls before must not make a call slower.
IDLE_CONNECTIONS, HANDLERS, CALLS_BEFORE = 5_000, 1_000, 100_000


@dataclass(frozen=True)
class Contestant:
    """One who is measured: a client process, and a server process beside it."""

    name: str
    library: str  #: those with the same one share an environment
    title: str  #: for tables and plots
    module: str  #: in `benchmarks.contestants`
    requirements: tuple[str, ...] = ()
    project: bool = False  #: whether this checkout is in the environment
    options: tuple[str, ...] = ()
    server: bool = True  #: whether there is a server process
    restarted: bool = False  #: whether its processes last for one slice only
    pinned: bool = True  #: whether it is kept on the cores that a case names
    preparation: tuple[Mapping[str, Any], ...] = ()  #: commands to the client, before all others

    def python(self) -> Path:
        """The interpreter, whose environment is made if need be.

        Raises
        ------
        EnvironmentUnavailable
            If it cannot be made.
        """
        return environment(f"bench-{self.library}", self.requirements, project=self.project)


def _core(library: str, title: str, requirements: tuple[str, ...], quick: bool) -> list[Contestant]:
    options = ("--certificates", str(CERTIFICATES))
    plain = Contestant(
        library,
        library,
        title,
        "core_calls",
        (*requirements, "numpy", "uvloop"),
        project=library == "ours",
        options=options,
    )
    idle = IDLE_CONNECTIONS // (5 if quick else 1)
    before = CALLS_BEFORE // (10 if quick else 1)
    return [
        plain,
        replace(
            plain,
            name=f"{library} uvloop",
            title=f"{title}, uvloop",
            options=(*options, "--loop", "uvloop"),
        ),
        replace(
            plain,
            name=f"{library} idle",
            title=f"{title}, {idle:,} idle connections",
            preparation=({"command": "hold", "count": idle},),
        ),
        replace(
            plain,
            name=f"{library} handlers",
            title=f"{title}, {HANDLERS:,} handlers",
            options=(*options, "--handlers", str(HANDLERS)),
        ),
        replace(
            plain,
            name=f"{library} called",
            title=f"{title}, after {before:,} calls",
            preparation=({"command": "sequential", "seconds": 0, "count": before},),
        ),
    ]


def contestants(*, quick: bool) -> dict[str, Contestant]:
    """All of them, by name."""
    everybody = [
        *_core("ours", "this project", ("psutil",), quick),
        *_core("original", "original", (ORIGINAL,), quick),
        Contestant("grpc", "grpc", "gRPC aio", "grpc_calls", ("grpcio", "msgpack")),
        Contestant("pyzmq", "pyzmq", "pyzmq aio", "pyzmq_calls", ("pyzmq", "msgpack")),
        Contestant("rpyc", "rpyc", "RPyC", "rpyc_calls", ("rpyc",)),
        Contestant("pyro5", "pyro5", "Pyro5", "pyro_calls", ("Pyro5", "msgpack")),
        # a dozen processes of its own, which take each other for dead when they are stopped
        Contestant(
            "ray",
            "ray",
            "Ray actor",
            "ray_calls",
            ("ray",),
            server=False,
            restarted=True,
            pinned=False,
        ),
        Contestant("sockets", "bare", "blocking sockets", "sockets", project=True),
        Contestant("iostream", "bare", "bare IOStream, msgpack", "iostream", project=True),
        Contestant("memory", "bare", "memory copy", "memory_copy", project=True, server=False),
    ]
    return {contestant.name: contestant for contestant in everybody}
