"""What is measured, of whom, and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CORE = ("ours", "original")
UVLOOP = ("ours uvloop", "original uvloop")
PEERS = ("grpc", "pyzmq", "rpyc", "pyro5", "ray")
TRANSPORTS = ("tcp", "tls", "unix", "ws", "inproc")

SIZES = {
    "10kB": 10_000,
    "100kB": 100_000,
    "1MB": 1_000_000,
    "100MB": 100_000_000,
    "1GB": 1_000_000_000,
}


@dataclass(frozen=True)
class Case:
    """One thing that is measured of several contestants."""

    name: str
    contestants: tuple[str, ...]
    command: Mapping[str, Any] = field(default_factory=dict)
    transport: str = "tcp"
    seconds: float = 0.6  #: that a slice takes in a full run
    cores: int = 2  #: that server and client have together
    rounds: int = 100  #: that it takes part in, at most
    quick: bool = True  #: whether it is part of a quick run
    how: str = "slice"  #: or "memory", "import", or "flat"


def _calls() -> Iterator[Case]:
    sequential = {"command": "sequential"}
    others = (*UVLOOP, *PEERS, "iostream", "sockets")
    for transport in TRANSPORTS:
        contestants = (*_speaking(transport), *(others if transport == "tcp" else ()))
        yield Case(f"sequential/{transport}", contestants, sequential, transport)
    yield Case("sequential on one core/tcp", (*CORE, *others), sequential, cores=1)
    for callers in (1, 8, 64, 512):
        for how, command in (("pooled", "pooled"), ("one connection", "taking_turns")):
            yield Case(
                f"concurrent/{callers} {how}/tcp",
                (*CORE, *UVLOOP) if (callers, how) == (64, "pooled") else CORE,
                {"command": command, "callers": callers},
                quick=how == "pooled" and callers != 1,
            )
    for transport in TRANSPORTS[1:]:
        yield Case(
            f"concurrent/64 pooled/{transport}",
            _speaking(transport),
            {"command": "pooled", "callers": 64},
            transport,
            quick=False,
        )


def _payloads() -> Iterator[Case]:
    for kind in ("bytes", "array"):
        for size_name, size in SIZES.items():
            for transport in TRANSPORTS:
                everywhere = kind == "array" and size_name in ("10kB", "1MB", "100MB")
                if transport != "tcp" and not everywhere:
                    continue
                contestants = _speaking(transport)
                if kind == "array" and transport in ("tcp", "unix"):
                    contestants += ("sockets",)
                if kind == "array" and transport == "tcp":
                    contestants += ("memory", *(UVLOOP if size_name in ("100kB", "1MB") else ()))
                large = size >= SIZES["100MB"]
                huge = size > SIZES["100MB"]
                yield Case(
                    f"payload/{kind} {size_name}/{transport}",
                    contestants,
                    {"command": "payload", "size": size, "kind": kind},
                    transport,
                    seconds=2.4 if large else 0.6,
                    rounds=2 if huge else 5 if large and transport != "tcp" else 100,
                    quick=not huge and (transport == "tcp" or (transport == "unix" and large)),
                )


def _others() -> Iterator[Case]:
    yield Case("messages/10k nested values/tcp", CORE, {"command": "nested", "count": 10_000})
    yield Case("messages/1k arrays/tcp", CORE, {"command": "arrays", "count": 1_000})
    yield Case("batched/tcp", CORE, {"command": "batched"})
    for transport in ("tcp", "tls"):
        for callers in (1, 8):
            yield Case(
                f"connections/{callers} at once/{transport}",
                CORE,
                {"command": "connections", "callers": callers},
                transport,
                quick=callers == 1,
            )
    yield Case("memory/per idle connection/tcp", CORE, rounds=3, how="memory")
    yield Case("import/distributed.core", CORE, how="import")
    yield Case("flat/tcp", CORE, rounds=3, how="flat")


def _speaking(transport: str) -> tuple[str, ...]:
    """Those of this project and the original that have this transport."""
    return CORE if transport != "unix" else CORE[:1]


def cases(*, quick: bool) -> list[Case]:
    """All of them, in the order in which they are measured."""
    every = [*_calls(), *_payloads(), *_others()]
    return [case for case in every if case.quick or not quick]
