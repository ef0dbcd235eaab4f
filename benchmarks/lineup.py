"""The contestants: which program each of them runs, and in which environment.

Libraries other than this project and the original take part in the sequential small calls only; Ray
and frisky run the workloads, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from distributed.tests.environments import ORIGINAL, ROOT, environment
from distributed.tests.grafts import grafted_environment, released_environment

CERTIFICATES = ROOT / "distributed" / "security" / "tests" / "data" / "tls"


@dataclass(frozen=True)
class Contestant:
    """A measured program: a client process, and a server process if it has one."""

    name: str
    library: str  #: contestants with the same library share an environment
    title: str  #: for tables and plots
    module: str  #: name in `benchmarks.contestants`
    requirements: tuple[str, ...] = ()  #: packages that are installed, or only shown
    project: bool = False  #: whether the environment contains this checkout
    options: tuple[str, ...] = ()
    server: bool = True  #: whether there is a server process
    restarted: bool = False  #: whether its processes are restarted for each slice
    pinned: bool = True  #: whether it is pinned to the cores that a case names
    make: Callable[[], Path] | None = None  #: returns the interpreter of a special environment

    def python(self) -> Path:
        """Return the interpreter of its environment, which is made if it does not exist.

        Raises
        ------
        EnvironmentUnavailable
            If the environment cannot be made.
        """
        if self.make is not None:
            return self.make()
        return environment(f"bench-{self.library}", self.requirements, project=self.project)


def _core(library: str, title: str, requirements: tuple[str, ...]) -> list[Contestant]:
    options = ("--certificates", str(CERTIFICATES))
    plain = Contestant(
        library,
        library,
        title,
        "core_calls",
        (*requirements, "numpy", "uvloop", "lz4", "zstandard"),
        project=library == "ours",
        options=options,
    )
    uvloop = replace(
        plain,
        name=f"{library} uvloop",
        title=f"{title}, uvloop",
        options=(*options, "--loop", "uvloop"),
    )
    return [plain, uvloop]


@cache
def _grafted() -> Path:
    """Return the interpreter of dask on this core as it is when the run starts."""
    return grafted_environment(ROOT / "build" / "graft")


def _dask() -> list[Contestant]:
    shown = ("distributed", "dask", "numpy", "pandas")
    grafted = Contestant(
        "dask on core",
        "dask on core",
        "dask on this core",
        "dask_programs",
        shown,
        server=False,
        pinned=False,
        make=_grafted,
    )
    over_unix = ("--protocol", "unix")
    return [
        grafted,
        replace(
            grafted,
            name="dask on core unix",
            title="dask on this core, unix",
            options=over_unix,
        ),
        replace(
            grafted,
            name="dask on core shared",
            title="dask on this core, shared memory",
            options=(*over_unix, "--shared"),
        ),
        replace(
            grafted,
            name="dask",
            library="dask",
            title="dask as released",
            make=released_environment,
        ),
    ]


def contestants() -> dict[str, Contestant]:
    """Return all contestants, by name."""
    lineup = [
        *_core("ours", "this project", ("psutil",)),
        *_core("original", "original", (ORIGINAL,)),
        *_dask(),
        Contestant("grpc", "grpc", "gRPC aio", "grpc_calls", ("grpcio", "msgpack")),
        Contestant("pyzmq", "pyzmq", "pyzmq aio", "pyzmq_calls", ("pyzmq", "msgpack")),
        Contestant("rpyc", "rpyc", "RPyC", "rpyc_calls", ("rpyc",)),
        Contestant("pyro5", "pyro5", "Pyro5", "pyro_calls", ("Pyro5", "msgpack")),
        # starts a dozen processes, each of which takes a stopped one for dead
        Contestant(
            "ray",
            "ray",
            "Ray",
            "ray_calls",
            ("ray", "numpy", "pandas"),
            server=False,
            restarted=True,
            pinned=False,
        ),
        Contestant("xoscar", "xoscar", "xoscar", "xoscar_calls", ("xoscar",)),
        Contestant(
            "frisky",
            "frisky",
            "frisky",
            "frisky_programs",
            ("frisky", "dask[array,dataframe]"),
            server=False,
            restarted=True,
            pinned=False,
        ),
        Contestant("sockets", "bare", "blocking sockets", "sockets", project=True),
        Contestant("iostream", "bare", "bare IOStream, msgpack", "iostream", project=True),
        Contestant("memory", "bare", "memory copy", "memory_copy", project=True, server=False),
    ]
    return {contestant.name: contestant for contestant in lineup}
