"""A configuration value that makes no sense is one error, which says where it comes from.

It is raised when a server is created, listens, or a client connects: never later, when a server
would drop each connection.
"""

from __future__ import annotations

import asyncio
import json
import warnings

import pytest

from distributed.base import config
from distributed.base.config_keys import DEFAULTS, KEYS
from distributed.base.config_kinds import Flag, Size, Text, Whole
from distributed.comm.core import connect, listen
from distributed.comm.settings import check_configuration
from distributed.core import Server, rpc
from distributed.tests.environments import run_here, run_in
from distributed.utils_test import captured_logger, gen_test

CONNECT = "distributed.comm.timeouts.connect"

#: Values that make no sense for most keys.
BAD = [None, "abc", "", -1, [1], {"a": 1}, 10**30, 1e300, float("nan"), True, b"x", object]


def bad_values(key: str) -> list:
    """Return the values of `BAD` that *key* must not have."""
    kind = KEYS[key].kind
    result = [value for value in BAD if value is not None or not kind.null]
    if isinstance(kind, Flag):
        result.remove(True)
    if isinstance(kind, Text):
        # Any text may be a path or a token.  Schemes and compressions are known.
        known = key in ("distributed.comm.default-scheme", "distributed.comm.compression")
        result = [value for value in result if value != "abc" or known]
    if key == "distributed.comm.zstd.level":
        result.remove(-1)
    if key == "distributed.comm.zstd.threads":
        result[result.index(-1)] = -2
    return result


#: Values below the minimum of a key, with which a server would refuse all its peers.
TOO_SMALL = {
    "distributed.comm.timeouts.connect": 0,
    "distributed.comm.timeouts.handshake": "0s",
    "distributed.comm.timeouts.idle": 0,
    "distributed.comm.keepalive.interval": "0s",
    "distributed.comm.keepalive.timeout": 0,
    "distributed.comm.max-connections": 0,
    "distributed.comm.max-connections-per-host": 0,
    "distributed.comm.max-message-size": 10,
    "distributed.comm.max-frames": 0,
    "distributed.comm.max-handshake-size": "100 B",
    "distributed.comm.shard": 0,
    "distributed.comm.websockets.shard": 0,
    "distributed.comm.socket-backlog": 0,
    "distributed.comm.timeouts.tcp": "5 days",
}

#: Durations that are not 0, with which a server would close each connection or only tick.
TOO_SHORT = {
    "distributed.comm.timeouts.connect": "1ns",
    "distributed.comm.timeouts.handshake": 1e-9,
    "distributed.comm.timeouts.idle": "1us",
    "distributed.admin.tick.interval": 5e-324,
    "distributed.admin.tick.cycle": "10us",
    "distributed.admin.system-monitor.interval": 5e-324,
}

CASES = [
    *((key, value) for key in KEYS for value in bad_values(key)),
    *TOO_SMALL.items(),
    *TOO_SHORT.items(),
    *((key, -0.5) for key, entry in KEYS.items() if isinstance(entry.kind, Size)),
    ("distributed.comm.offload", "-0.2kB"),
    ("distributed.comm.tls.min-version", "1.2"),
    ("distributed.comm.tls.max-version", 1.1),
    ("distributed.comm.require-encryption", "no"),
    ("distributed.comm.allow-pickle", "no"),
]


async def use_everything() -> None:
    """Create a server that listens, and call it."""
    async with Server({}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            await remote.identity()


def assert_is_explained(text: str, key: str, value: object, source: str) -> None:
    assert key in text
    assert source in text
    assert "Use e.g." in text or "Valid options are" in text
    secret = KEYS[key].kind.secret
    assert ("a secret of type" if secret else repr(value)[:100]) in text


@pytest.mark.parametrize("key", KEYS)
@gen_test()
async def test_a_bad_value_is_one_error_when_the_server_listens_or_the_client_connects(key):
    cases = [value for each, value in CASES if each == key]
    assert cases
    async with Server({}) as before:
        await before.listen("tcp://127.0.0.1:0")
        for value in cases:
            with config.set({key: value}):
                if key == "temporary-directory":
                    # It is a section of its own, and is read by servers alone.
                    uses = [use_everything()]
                else:
                    uses = [use_everything(), connect(before.address)]
                    with pytest.raises(ValueError, match=key.replace("-", ".")):
                        listen("tcp://127.0.0.1:0", print)
                for use in uses:
                    with pytest.raises(
                        ValueError, match=r"from distributed\.config\.set"
                    ) as caught:
                        await use
                    assert_is_explained(str(caught.value), key, value, "distributed.config.set")


@pytest.mark.parametrize("key", KEYS)
def test_the_default_and_the_example_of_each_key_are_allowed(key):
    entry = KEYS[key]
    entry.kind.read(entry.default)
    example = config.config_store.interpret_value(entry.kind.example)
    entry.kind.read([example] if isinstance(entry.default, list) else example)
    if entry.kind.null:
        assert entry.kind.read(None) is None


def test_every_default_is_in_the_table():
    def leaves(section, prefix=""):
        for name, value in section.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    assert sorted(leaves(DEFAULTS)) == sorted(KEYS)


@pytest.mark.parametrize("kind", [Size(null=True), Whole(null=True)])
def test_a_number_of_64_bits_is_allowed_and_a_larger_one_is_not(kind):
    assert kind.read(2**63 - 1) == 2**63 - 1
    with pytest.raises(ValueError, match="out of range"):
        kind.read(2**63)


# Sources

#: The import of the package reads this key; see test_log_setup.py.
AT_IMPORT = "distributed.admin.log-format"
READ_LATER = [key for key in KEYS if key != AT_IMPORT]

#: For each key, in other interpreters: the error of a bad value.
ERRORS = """
    import json
    from distributed.base import config
    def error(key):
        try:
            config.read(key)
        except ValueError as exc:
            return str(exc)
    print(json.dumps([error(key) for key in config.KEYS if key != 'distributed.admin.log-format']))
"""

#: A value that no key may have, as text and as a value.
NONSENSE = "[1, [2]]"


@pytest.fixture(params=["bare_python", "dask_python"])
def python(request):
    return request.getfixturevalue(request.param)


def errors(python, **env: str) -> list[str]:
    return json.loads(run_in(python, ERRORS, env=env).stdout)


def test_the_error_names_the_environment_variable(python, tmp_path):
    env = {"HOME": str(tmp_path), "DASK_ROOT_CONFIG": str(tmp_path)}
    names = {key: "DASK_" + key.upper().replace(".", "__").replace("-", "_") for key in READ_LATER}
    found = errors(python, **env, **dict.fromkeys(names.values(), NONSENSE))
    for key, text in zip(READ_LATER, found, strict=True):
        assert_is_explained(text, key, json.loads(NONSENSE), f"environment variable {names[key]}")


@pytest.mark.parametrize("variable", ["DASK_CONFIG", "HOME"])
def test_the_error_names_the_file(python, tmp_path, variable):
    def nonsense(section):
        return {
            name: nonsense(value) if isinstance(value, dict) else json.loads(NONSENSE)
            for name, value in section.items()
            if name != AT_IMPORT.rpartition(".")[2]
        }

    directory = tmp_path if variable == "DASK_CONFIG" else tmp_path / ".config" / "dask"
    directory.mkdir(parents=True, exist_ok=True)
    # JSON is YAML.  The bare environment reads no YAML, and dask's no JSON in a directory of files.
    for suffix in ("json", "yaml"):
        (directory / f"values.{suffix}").write_text(json.dumps(nonsense(DEFAULTS)))
    env = {"HOME": str(tmp_path / "nowhere"), "DASK_ROOT_CONFIG": str(tmp_path / "nowhere")}
    found = errors(python, **{**env, variable: str(tmp_path)})
    for key, text in zip(READ_LATER, found, strict=True):
        assert_is_explained(text, key, json.loads(NONSENSE), f"file '{directory}/values.")


def test_a_value_that_was_set_later_does_not_blame_the_variable(monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "later")
    with (
        config.set({CONNECT: "soon"}),
        pytest.raises(ValueError, match=r"distributed\.config\.set"),
    ):
        config.read(CONNECT)
    with config.set({CONNECT: "later"}), pytest.raises(ValueError, match="variable DASK_DIST"):
        config.read(CONNECT)


def test_a_value_in_place_of_a_section_is_an_error_with_its_source():
    expected = r"'distributed\.comm' is 'fast' \(from distributed"
    with config.set({"distributed.comm": "fast"}), pytest.raises(ValueError, match=expected):
        listen("tcp://127.0.0.1:0", print)
    with (
        config.set({"distributed.comm.auth": "sesame"}),
        pytest.raises(ValueError, match=r"auth' is a value \(from") as caught,
    ):
        listen("tcp://127.0.0.1:0", print)
    assert "sesame" not in str(caught.value)


# A server that runs already


@gen_test()
async def test_a_bad_value_that_is_set_later_does_not_make_a_server_drop_its_connections():
    async with Server({}) as server:
        await server.listen("tcp://127.0.0.1:0")
        comm = await connect(server.address)
        comm.abort()
        accepted: asyncio.Queue = asyncio.Queue()
        async with listen("tcp://127.0.0.1:0", accepted.put) as listener:
            code = "import asyncio, sys; from distributed.core import rpc\n"
            code += "async def main():\n"
            code += "    async with rpc(sys.argv[1]) as remote: await remote.identity()\n"
            code += "asyncio.run(main())"
            with config.set({CONNECT: "abc"}), captured_logger("distributed.comm.settings") as log:
                with pytest.raises(ValueError, match=CONNECT):
                    await connect(listener.contact_address)
                await asyncio.to_thread(run_here, code, server.address)
                await asyncio.to_thread(run_here, code, server.address)
            assert log.getvalue().count(CONNECT) == 1


# Misspelt keys


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("distributed.comm.timeouts.conect", "distributed.comm.timeouts.connect"),
        ("distributed.comm.timeout.connect", "distributed.comm.timeouts.connect"),
        ("distributed.comm.connect", "distributed.comm.timeouts.connect"),
        ("distributed.comm.max-message-sizes", "distributed.comm.max-message-size"),
        ("distributed.comm.Shard", "distributed.comm.shard"),
        ("distributed.comm.require-encrypt", "distributed.comm.require-encryption"),
        ("distributed.comm.auth.tokne", "distributed.comm.auth.token"),
        ("distributed.comm.tls.ca-cert", "distributed.comm.tls.ca-file"),
        ("distributed.comm.tls.client.certs", "distributed.comm.tls.client.cert"),
    ],
)
def test_a_misspelt_key_causes_one_warning_that_names_the_nearest_one(key, meant):
    with config.set({key: "1s"}):
        with pytest.warns(UserWarning, match=rf"'{key}' \(from .*did you mean '{meant}'"):
            listen("tcp://127.0.0.1:0", print)
        with warnings.catch_warnings(), config.set({CONNECT: "7s"}):
            warnings.simplefilter("error")
            listen("tcp://127.0.0.1:0", print)


@pytest.mark.parametrize(
    "key",
    [
        "distributed.comm.default_scheme",
        "distributed.comm.ucx.cuda-copy",
        "distributed.comm.my-transport.depth",
    ],
)
def test_other_keys_cause_no_warning(key):
    with config.set({key: "tcp"}):
        check_configuration()


def test_defaults_of_another_package_cause_no_warning():
    key = "distributed.comm.timeouts.connects"
    config.update_defaults({"distributed": {"comm": {"timeouts": {"connects": 1}}}})
    try:
        check_configuration()
    finally:
        config._store().defaults.pop()
        config.pop(key)
