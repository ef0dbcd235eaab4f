from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distributed.comm import backends as package_backends
from distributed.comm.inproc import InProcBackend
from distributed.comm.registry import Backend, Backends, backends, get_backend
from distributed.comm.tcp import TCPBackend

PROVIDER = """
from distributed.comm.inproc import InProcBackend

class Udp(InProcBackend):
    pass

def broken():
    raise RuntimeError("no such device")

def wrong():
    return "a string"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes ``importlib.metadata`` find a package with an entry point."""

    def install(entry_point: str) -> None:
        (tmp_path / "transport_under_test.py").write_text(PROVIDER)
        info = tmp_path / "transport_under_test-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: transport-under-test\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[distributed.comm.backends]\n{entry_point}\n")
        monkeypatch.syspath_prepend(tmp_path)

    # Monkeypatch undoes only its own changes, so register each key that a test may add.
    known = set(backends)
    yield install
    sys.modules.pop("transport_under_test", None)
    for scheme in set(backends) - known:
        del backends[scheme]


@pytest.mark.parametrize(("scheme", "cls"), [("tcp", TCPBackend), ("inproc", InProcBackend)])
def test_built_in_schemes_have_their_backends(scheme: str, cls: type[Backend]) -> None:
    assert type(get_backend(scheme)) is cls
    assert backends[scheme] is get_backend(scheme)


def test_the_package_exports_the_registry() -> None:
    assert package_backends is backends


@pytest.mark.parametrize("scheme", ["x", "", "TCP", None])
def test_unknown_scheme_is_an_error_that_names_the_known_ones(scheme: str) -> None:
    with pytest.raises(ValueError, match=rf"^unknown address scheme {scheme!r} \(known schemes: "):
        get_backend(scheme)
    with pytest.raises(ValueError, match=r"'inproc', 'tcp'"):
        get_backend(scheme)


def test_assigned_backend_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = InProcBackend()
    monkeypatch.setitem(backends, "mine", mine)
    assert get_backend("mine") is mine
    assert "mine" in backends
    with pytest.raises(ValueError, match="'mine'"):
        get_backend("x")


def test_assigned_backend_replaces_a_built_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = InProcBackend()
    monkeypatch.setitem(backends, "tcp", mine)
    assert get_backend("tcp") is mine
    monkeypatch.undo()
    assert type(get_backend("tcp")) is TCPBackend


def test_a_built_in_scheme_is_listed_before_it_is_imported() -> None:
    fresh = Backends({"a": "no_such_module:A", "tcp": "distributed.comm.tcp:TCPBackend"})
    assert "a" in fresh
    assert "b" not in fresh
    assert sorted(fresh) == ["a", "tcp"]
    assert len(fresh) == 2
    assert repr(fresh) == "<Backends: a, tcp>"
    assert type(fresh["tcp"]) is TCPBackend
    assert sorted(fresh) == ["a", "tcp"]
    assert len(fresh) == 2


@pytest.mark.parametrize("used", [True, False])
def test_a_built_in_scheme_can_be_deleted(used: bool) -> None:
    fresh = Backends({"tcp": "distributed.comm.tcp:TCPBackend"})
    if used:
        assert fresh["tcp"]
    del fresh["tcp"]
    assert "tcp" not in fresh
    with pytest.raises(KeyError):
        del fresh["tcp"]


def test_concurrent_lookups_return_one_backend() -> None:
    with ThreadPoolExecutor(4) as threads:
        for _ in range(20):
            fresh = Backends({"tcp": "distributed.comm.tcp:TCPBackend"})
            assert len(set(threads.map(fresh.__getitem__, ["tcp"] * 8))) == 1


def test_parsing_an_address_imports_no_transport() -> None:
    program = (
        "import sys; from distributed.comm.addressing import parse_address, parse_host_port\n"
        "parse_address('tcp://h:1'), parse_host_port('tcp://h:1')\n"
        "assert 'distributed.comm.registry' in sys.modules\n"
        "assert not {'distributed.comm.tcp', 'distributed.comm.inproc'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_entry_point_provides_a_scheme(install) -> None:
    install("udp = transport_under_test:Udp")
    backend = get_backend("udp")
    assert type(backend).__name__ == "Udp"
    assert get_backend("udp") is backend
    assert backends["udp"] is backend


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("transport_under_test:broken", "RuntimeError: no such device"),
        ("transport_under_test:missing", "AttributeError: .*missing"),
        ("no_such_module_at_all:x", "ModuleNotFoundError: .*no_such_module_at_all"),
        ("transport_under_test:wrong", "TypeError: it made 'a string', which is not a Backend"),
    ],
)
def test_the_error_names_an_entry_point_that_fails(install, reference: str, reason: str) -> None:
    install(f"udp = {reference}")
    with pytest.raises(
        ImportError, match=f"'udp'.*'{reference}'.*'transport-under-test'.*{reason}"
    ):
        get_backend("udp")
    assert "udp" not in backends


def test_entry_points_are_not_searched_for_a_known_scheme(install) -> None:
    install("tcp = transport_under_test:broken")
    assert type(get_backend("tcp")) is TCPBackend


def test_a_backend_has_no_ports_by_default() -> None:
    with pytest.raises(NotImplementedError, match="InProcBackend"):
        InProcBackend().get_address_host_port("1.2.3.4/5/1")
