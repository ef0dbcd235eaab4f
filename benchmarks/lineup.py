"""Who is measured: which program, in which environment.

Peers beside this project and the original do the sequential small calls only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from distributed.tests.environments import ORIGINAL, ROOT, environment

CERTIFICATES = ROOT / "distributed" / "tests" / "data" / "tls"


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

    def python(self) -> Path:
        """The interpreter, whose environment is made if need be.

        Raises
        ------
        EnvironmentUnavailable
            If it cannot be made.
        """
        return environment(f"bench-{self.library}", self.requirements, project=self.project)


def _core(library: str, title: str, requirements: tuple[str, ...]) -> list[Contestant]:
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
    uvloop = replace(
        plain,
        name=f"{library} uvloop",
        title=f"{title}, uvloop",
        options=(*options, "--loop", "uvloop"),
    )
    return [plain, uvloop]


def contestants() -> dict[str, Contestant]:
    """All of them, by name."""
    everybody = [
        *_core("ours", "this project", ("psutil",)),
        *_core("original", "original", (ORIGINAL,)),
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
