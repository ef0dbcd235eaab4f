"""The configuration, with and without dask.

Tests that depend on installed packages, files or environment variables run their code in another
interpreter; `python` is one with only the requirements of this package, or with dask too.
"""

from __future__ import annotations

import json
import textwrap
import threading
from collections.abc import Mapping

import pytest

import distributed.config
from distributed.base import config_store
from distributed.base.config import DEFAULTS, get, get_bool, get_bytes, get_int, get_timedelta
from distributed.tests.environments import run_in

CONNECT = "distributed.comm.timeouts.connect"


@pytest.fixture(params=["bare_python", "dask_python"])
def python(request):
    """Without dask, and with it."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["yaml_python", "dask_python"])
def python_with_yaml(request):
    """With PyYAML, without dask and with it."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def home(tmp_path):
    """Environment variables for a home directory and a configuration directory of the host."""
    (tmp_path / "home" / ".config" / "dask").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    return {"HOME": str(tmp_path / "home"), "DASK_ROOT_CONFIG": str(tmp_path / "etc")}


def read(python, keys, *, prepare="", **kwargs):
    """Return the values of keys as another interpreter reads them."""
    code = f"{prepare}\nimport json\nfrom distributed.config import get\n"
    code += f"print(json.dumps([get(key, 'unset') for key in {keys!r}]))"
    return json.loads(run_in(python, code, options=["-Werror"], **kwargs).stdout)


def flat(section, prefix=""):
    result = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


#: Keys that the original does not have.
OURS = {
    "distributed.admin.log-limit",
    "distributed.admin.max-shown-length",
    "distributed.admin.slow-call",
    "distributed.pages.allowed-hosts",
    "distributed.pages.interval",
    "distributed.pages.max-connections",
    "distributed.pages.max-header-size",
    "distributed.pages.max-watchers",
    "distributed.pages.public",
    "distributed.pages.timeout",
    "distributed.comm.allow-pickle",
    "distributed.comm.max-depth",
    "distributed.comm.max-inflated-size",
    "distributed.comm.auth.token",
    "distributed.comm.auth.token-file",
    "distributed.comm.batched.acknowledge",
    "distributed.comm.auth.allow-health",
    "distributed.comm.batched.max-buffer-size",
    "distributed.comm.batched.max-sessions",
    "distributed.comm.batched.session-timeout",
    "distributed.comm.keepalive.interval",
    "distributed.comm.keepalive.timeout",
    "distributed.comm.max-connections",
    "distributed.comm.max-connections-per-host",
    "distributed.comm.max-refusals",
    "distributed.comm.timeouts.refusal",
    "distributed.comm.max-frames",
    "distributed.comm.max-handshake-size",
    "distributed.comm.max-message-size",
    "distributed.comm.max-stream-handlers",
    "distributed.comm.shared.enabled",
    "distributed.comm.shared.max-bytes",
    "distributed.comm.shared.max-descriptors",
    "distributed.comm.shared.threshold",
    "distributed.comm.timeouts.handshake",
    "distributed.comm.timeouts.idle",
    "distributed.comm.timeouts.pool-idle",
    "distributed.nanny.blocked-handlers",
    "distributed.server.shutdown-timeout",
}


def test_defaults_equal_those_of_the_original(original_python):
    shared = sorted(set(flat(DEFAULTS)) - OURS)
    code = f"""
        import json, dask.config, distributed
        print(json.dumps({{key: dask.config.get(key) for key in {shared}}}))
    """
    theirs = json.loads(run_in(original_python, code).stdout)
    assert {key: value for key, value in flat(DEFAULTS).items() if key not in OURS} == theirs


def test_the_original_does_not_have_our_own_keys(original_python):
    code = f"""
        import json, dask.config, distributed
        print(json.dumps([dask.config.get(key, "unset") for key in {sorted(OURS)}]))
    """
    assert set(json.loads(run_in(original_python, code).stdout)) == {"unset"}


def test_every_default_can_be_read(python, home):
    keys = sorted(flat(DEFAULTS))
    assert read(python, keys, env=home) == [flat(DEFAULTS)[key] for key in keys]


# Reading


@pytest.mark.parametrize(
    "key", ["distributed.comm.default-scheme", "distributed.comm.default_scheme"]
)
def test_dash_and_underscore_are_equivalent_in_keys(key):
    assert get(key) == "tcp"


def test_an_unknown_key_is_a_key_error_that_names_it_and_its_variable():
    with pytest.raises(KeyError, match=r"'no\.such-key'.*DASK_NO__SUCH_KEY"):
        get("no.such-key")


def test_get_returns_the_given_default_for_an_unknown_key():
    assert get("no.such-key", None) is None


def test_get_ignores_the_given_default_for_a_known_key():
    assert get(CONNECT, "5s") == "30s"


def test_a_section_includes_its_defaults():
    with distributed.config.set({"distributed.comm.timeouts": {"connect": "1s"}}):
        defaults = DEFAULTS["distributed"]["comm"]["timeouts"]
        assert get("distributed.comm.timeouts") == {**defaults, "connect": "1s"}


def test_a_section_set_to_null_has_its_defaults():
    with distributed.config.set({"distributed.comm.timeouts": None}):
        assert get("distributed.comm.timeouts") == DEFAULTS["distributed"]["comm"]["timeouts"]
        assert get(CONNECT) == "30s"


def test_a_caller_cannot_change_the_defaults():
    with distributed.config.set({"distributed.scheduler": None}):
        get("distributed.scheduler.allowed-imports").append("mischief")
        assert get("distributed.scheduler.allowed-imports") == ["dask", "distributed"]


def test_a_value_in_place_of_a_section_is_an_error_that_names_it(python, home):
    code = f"""
        import distributed.config
        distributed.config.set({{"distributed.comm": "fast"}})
        distributed.config.get({CONNECT!r})
    """
    stderr = run_in(python, code, env=home, check=False).stderr
    assert "ValueError: Configuration key 'distributed.comm' is 'fast'" in stderr
    assert "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT" in stderr


def test_config_is_the_whole_mapping():
    with distributed.config.set({CONNECT: "7s"}):
        assert distributed.config.config["distributed"]["comm"]["timeouts"]["connect"] == "7s"


def test_an_unknown_attribute_is_an_error():
    with pytest.raises(AttributeError, match=r"'distributed\.config' has no attribute 'nope'"):
        distributed.config.nope  # noqa: B018


# Typed readers


@pytest.mark.parametrize(
    ("reader", "value", "expected"),
    [
        (get_timedelta, "500ms", 0.5),
        (get_timedelta, "2 minutes", 120),
        (get_timedelta, 1.5, 1.5),
        (get_bytes, "64MiB", 2**26),
        (get_bytes, "10 kB", 10**4),
        (get_bytes, 4096, 4096),
        (get_int, 5, 5),
        (get_int, 5.0, 5),
        (get_int, 0, 0),
        (get_bool, True, True),
        (get_bool, False, False),
        (get_bool, 1, True),
        (get_bool, 0, False),
        *((reader, None, None) for reader in (get_timedelta, get_bytes, get_int, get_bool)),
    ],
)
def test_a_typed_reader_converts_the_value(reader, value, expected):
    with distributed.config.set({"some.key": value}):
        result = reader("some.key")
    assert (type(result), result) == (type(expected), expected)


@pytest.mark.parametrize(
    ("reader", "value", "example"),
    [
        (get_timedelta, "5 parsecs", "30s"),
        (get_timedelta, True, "30s"),
        (get_timedelta, -1, "30s"),
        (get_timedelta, ["30s"], "30s"),
        (get_bytes, "64 MiBi", "64MiB"),
        (get_bytes, False, "64MiB"),
        (get_bytes, "-1", "64MiB"),
        (get_bytes, ["64MiB"], "64MiB"),
        (get_int, "many", "1000"),
        (get_int, 1.5, "1000"),
        (get_int, True, "1000"),
        (get_int, -1, "1000"),
        (get_bool, "perhaps", "true"),
        (get_bool, 2, "true"),
    ],
)
def test_an_invalid_value_is_an_error_with_the_key_the_value_and_an_example(reader, value, example):
    with (
        distributed.config.set({"some.good-key": value}),
        pytest.raises(ValueError, match=r"Configuration key 'some\.good-key' is ") as caught,
    ):
        reader("some.good-key")
    assert repr(value) in str(caught.value)
    assert f"DASK_SOME__GOOD_KEY={example}" in str(caught.value)


def test_an_invalid_value_of_a_variable_is_an_error_that_names_the_key(python, home):
    env = home | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "soon"}
    code = f"import distributed.config; distributed.config.get_timedelta({CONNECT!r})"
    stderr = run_in(python, code, env=env, check=False).stderr
    assert f"ValueError: Configuration key {CONNECT!r} is 'soon'" in stderr


# Setting, with dask and without

SETTING = {
    "as a context manager": """
        with distributed.config.set({"distributed.comm.shard": "1kiB"}):
            assert get("distributed.comm.shard") == "1kiB"
        assert get("distributed.comm.shard") == "64MiB"
    """,
    "for good": """
        distributed.config.set({"distributed.comm.shard": "1kiB"})
        assert get("distributed.comm.shard") == "1kiB"
    """,
    "with keywords": """
        with distributed.config.set(distributed__comm__socket_backlog=5):
            assert get("distributed.comm.socket-backlog") == 5
        assert get("distributed.comm.socket-backlog") == 2048
    """,
    "one within the other": """
        with distributed.config.set({"new.key": 1}):
            with distributed.config.set({"new.key": 2, "new.other": 3}):
                assert get("new") == {"key": 2, "other": 3}
            assert get("new") == {"key": 1}
        assert get("new", "unset") == "unset"
    """,
    "in spite of an error": """
        try:
            with distributed.config.set({"new.key": 1}):
                1 / 0
        except ZeroDivisionError:
            pass
        assert get("new", "unset") == "unset"
    """,
    "a section": """
        with distributed.config.set({"new": {"a": 1, "b": 2}}):
            with distributed.config.set({"new": {"c": 3}}):
                assert get("new") == {"c": 3}
            assert get("new") == {"a": 1, "b": 2}
    """,
    "dash and underscore": """
        with distributed.config.set({"new.a-key": 1}):
            with distributed.config.set({"new.a_key": 2}):
                assert get("new") == {"a-key": 2}
    """,
    "and pop": """
        distributed.config.set({"new.key": 1})
        assert distributed.config.pop("new.key") == 1
        assert distributed.config.pop("new.key", 2) == 2
        assert get("new.key", "unset") == "unset"
    """,
    "and pop a missing key": """
        try:
            distributed.config.pop("no.key")
        except KeyError:
            pass
        else:
            raise AssertionError("no KeyError")
    """,
    "and pop a key that has a default": """
        with distributed.config.set({"distributed.comm.shard": "1kiB"}):
            distributed.config.pop("distributed.comm.shard")
            assert get("distributed.comm.shard") == "64MiB"
    """,
    "and refresh": """
        distributed.config.set({"new.key": 1, "distributed.comm.shard": "1kiB"})
        distributed.config.refresh()
        assert get("new.key", "unset") == "unset"
        assert get("distributed.comm.shard") == "64MiB"
    """,
    "and refresh from elsewhere": """
        distributed.config.refresh(paths=[], env={"DASK_DISTRIBUTED__COMM__SHARD": "2kiB"})
        assert get("distributed.comm.shard") == "2kiB"
    """,
    "defaults of others": """
        distributed.config.update_defaults({"role": {"name": "cook", "age": 5}})
        assert get("role") == {"name": "cook", "age": 5}
        with distributed.config.set({"role.age": 6}):
            distributed.config.update_defaults({"role": {"name": "baker", "age": 7}})
            assert get("role") == {"name": "baker", "age": 6}
        distributed.config.refresh()
        assert set(get("role")) == {"name", "age"}
    """,
    "other defaults for our keys": """
        distributed.config.update_defaults({"distributed": {"comm": {"shard": "3kiB"}}})
        assert get("distributed.comm.shard") == "3kiB"
        assert get("distributed.comm.offload") == "10MiB"
    """,
    "and collect, which changes nothing": """
        found = distributed.config.collect(paths=[], env={"DASK_NEW__KEY": "[1]"})
        assert found == {"new": {"key": [1]}}
        assert get("new.key", "unset") == "unset"
    """,
}


@pytest.mark.parametrize("code", SETTING.values(), ids=SETTING)
def test_changing_the_configuration(python, home, code):
    preamble = "import distributed.config\nfrom distributed.config import get\n"
    run_in(python, preamble + textwrap.dedent(code), env=home, options=["-Werror"])


def test_threads_can_set_values_concurrently():
    before = json.dumps(distributed.config.config, sort_keys=True)
    barrier = threading.Barrier(8)
    errors = []

    def work(number):
        barrier.wait()
        for _ in range(200):
            with distributed.config.set({f"threads.t{number}.x": number, f"other-{number}": 1}):
                if get(f"threads.t{number}.x", None) != number:
                    errors.append(number)

    with distributed.config.set({"threads": {}}):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert get("threads") == {}
    assert not errors
    assert json.dumps(distributed.config.config, sort_keys=True) == before


# Variables


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "10s", CONNECT, "10s"),
        ("DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME", "tls", "distributed.comm.default-scheme", "tls"),
        ("DASK_FOO__BAR_BAZ", "[1, 2]", "foo.bar-baz", [1, 2]),
        ("DASK_FOO", "true", "foo", True),
        ("DASK_FOO", "None", "foo", None),
        ("DASK_FOO", "null", "foo", None),
        ("DASK_FOO", "1e3", "foo", 1000.0),
        ("DASK_FOO", "'1'", "foo", "1"),
        ("DASK_FOO", "{'bar': 1}", "foo.bar", 1),
        ("DASK_FOO", "", "foo", ""),
    ],
)
def test_environment_variables_set_keys(python, home, name, text, key, value):
    assert read(python, [key], env=home | {name: text}) == [value]


def test_a_child_process_inherits_values_of_its_parent(python, home):
    handed_down = distributed.config.serialize({"foo": {"bar": 1, "baz": 2}})
    env = home | {"DASK_INTERNAL_INHERIT_CONFIG": handed_down, "DASK_FOO__BAZ": "3"}
    assert read(python, ["foo.bar", "foo.baz"], env=env) == [1, 3]


def test_inherited_values_are_encoded_as_by_dask(dask_python):
    data = {"foo": {"bar": [1, None, "ÿ?>"]}}
    code = f"import dask.config; print(dask.config.serialize({data!r}))"
    assert run_in(dask_python, code).stdout.strip() == config_store.serialize(data)


# Files

FILES = {
    "etc/a.yaml": "foo: {etc: 1, bar-baz: etc, shared: etc}",
    "home/.config/dask/a.yaml": "foo: {home-a: 1, bar_baz: home-a, shared: home}",
    "home/.config/dask/b.yml": "foo: {home-b: 1, bar-baz: home-b}",
    "home/.config/dask/c.json": '{"foo": {"home-c": 1}}',
    "home/.config/dask/d.txt": "not: a configuration file",
    "own/x.yaml": "foo: {own: 1, shared: own}\ndistributed:\n  comm:\n",
}


@pytest.fixture
def files(tmp_path, home):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return home


def test_later_files_override_earlier_ones_key_by_key(python_with_yaml, files, tmp_path):
    keys = ["etc", "home-a", "home-b", "home-c", "own", "bar-baz", "shared"]
    env = files | {"DASK_CONFIG": str(tmp_path / "own")}
    values = read(python_with_yaml, [f"foo.{key}" for key in keys], env=env)
    assert values == [1, 1, 1, 1, 1, "home-b", "own"]


def test_the_variable_dask_config_can_name_a_file(python_with_yaml, files, tmp_path):
    env = files | {"DASK_CONFIG": str(tmp_path / "own" / "x.yaml")}
    assert read(python_with_yaml, ["foo.shared"], env=env) == ["own"]


def test_an_empty_section_in_a_file_keeps_the_defaults(python_with_yaml, files, tmp_path):
    env = files | {"DASK_CONFIG": str(tmp_path / "own")}
    assert read(python_with_yaml, [CONNECT], env=env) == ["30s"]


def test_environment_variables_override_files(python_with_yaml, files):
    env = files | {"DASK_FOO__SHARED": "variable"}
    assert read(python_with_yaml, ["foo.shared", "foo.etc"], env=env) == ["variable", 1]


def test_a_missing_path_is_ignored(python, home):
    assert read(python, [CONNECT], env=home | {"DASK_CONFIG": "/no/such/path"}) == ["30s"]


def test_json_files_are_read_without_pyyaml(bare_python, home, tmp_path):
    (tmp_path / "etc" / "a.json").write_text('{"foo": {"bar": 1}}')
    assert read(bare_python, ["foo.bar"], env=home) == [1]


def test_without_pyyaml_one_warning_names_the_yaml_files_and_the_extra(bare_python, files):
    code = """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import distributed.config
            values = [distributed.config.get(key, "unset") for key in ("foo.etc", "foo.home-c")]
        print(values)
        for warning in caught:
            print(warning.message)
    """
    values, *warned = run_in(bare_python, code, env=files).stdout.splitlines()
    assert values == "['unset', 1]"
    (message,) = warned
    assert "etc/a.yaml" in message
    assert "b.yml" in message
    assert "distributed-core[config]" in message


@pytest.mark.parametrize("text", ["foo: [", "- a\n- list\n", "just text"])
def test_a_malformed_file_is_an_error_that_names_it(yaml_python, home, tmp_path, text):
    (tmp_path / "etc" / "broken.yaml").write_text(text)
    code = "import distributed.config; distributed.config.get('foo')"
    stderr = run_in(yaml_python, code, env=home, check=False).stderr
    assert "ValueError: Configuration file" in stderr
    assert "broken.yaml' is malformed" in stderr


def test_a_malformed_json_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json' is malformed"):
        config_store.collect_files([str(tmp_path)])


def test_a_file_that_cannot_be_read_is_skipped_with_a_warning(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "b.json").write_text('{"b": 1}')
    with pytest.warns(RuntimeWarning, match=r"a\.json', which cannot be read"):
        assert config_store.collect_files([str(tmp_path)]) == [{"b": 1}]


# The choice between dask.config and config_store


@pytest.mark.parametrize("module", ["distributed.config", "distributed.core"])
def test_importing_does_not_import_dask_or_read_files(dask_python, module, files):
    code = f"""
        import sys
        import {module}
        print([name for name in ("dask", "yaml", "numpy", "psutil") if name in sys.modules])
    """
    assert run_in(dask_python, code, env=files, options=["-Werror"]).stdout == "[]\n"


WITH_DASK = {
    "dask.config.set sets our values": """
        import distributed.config, dask.config
        with dask.config.set({"distributed.comm.shard": "1kiB"}):
            assert distributed.config.get_bytes("distributed.comm.shard") == 1024
        assert distributed.config.get("distributed.comm.shard") == "64MiB"
    """,
    "our set sets the values of dask": """
        import distributed.config, dask.config
        with distributed.config.set({"distributed.comm.shard": "1kiB", "array.chunk-size": 5}):
            assert dask.config.get("distributed.comm.shard") == "1kiB"
            assert dask.config.get("array.chunk-size") == 5
        assert dask.config.get("array.chunk-size") == "128MiB"
    """,
    "it is the same mapping": """
        import distributed.config, dask.config
        assert distributed.config.config is dask.config.config
        assert distributed.config.paths is dask.config.paths
    """,
    "dask has our defaults at once if it was imported first": """
        import dask.config
        import distributed.config
        assert dask.config.get("distributed.comm.max-frames") == 2**20
    """,
    "dask keeps values that were set before our import": """
        import dask.config
        dask.config.set({"distributed.comm.shard": "1kiB"})
        import distributed.config
        assert distributed.config.get("distributed.comm.shard") == "1kiB"
        assert distributed.config.get("distributed.comm.offload") == "10MiB"
    """,
    "defaults outlive a set that began before our import": """
        import dask.config
        with dask.config.set({"distributed.comm.shard": "1kiB"}):
            import distributed.config
            assert distributed.config.get("distributed.comm.shard") == "1kiB"
        assert distributed.config.get("distributed.comm.shard") == "64MiB"
        assert distributed.config.get_timedelta("distributed.comm.timeouts.connect") == 30
        assert distributed.config.get("distributed.comm.tls")["min-version"] == 1.2
    """,
    "defaults outlive a refresh of dask": """
        import distributed.config, dask.config
        distributed.config.get("distributed.comm.shard")
        dask.config.refresh()
        assert dask.config.get("distributed.comm.shard") == "64MiB"
    """,
    "defaults of dask are available": """
        import distributed.config
        assert distributed.config.get("array.backend") == "numpy"
    """,
}


@pytest.mark.parametrize("code", WITH_DASK.values(), ids=WITH_DASK)
def test_with_dask(dask_python, home, code):
    run_in(dask_python, code, env=home, options=["-Werror"])


def test_threads_that_first_use_it_concurrently_share_one_configuration(python, home):
    code = """
        import sys, threading
        import distributed.config
        sys.setswitchinterval(1e-6)
        barrier = threading.Barrier(8)
        found = []
        def work():
            barrier.wait()
            found.append(distributed.config.get("distributed.comm.shard"))
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == ["64MiB"] * 8, found
    """
    run_in(python, code, env=home)


def test_an_empty_directory_named_dask_is_not_dask(bare_python, home, tmp_path):
    (tmp_path / "cwd" / "dask").mkdir(parents=True)
    assert read(bare_python, [CONNECT], env=home, cwd=tmp_path / "cwd") == ["30s"]


def test_a_dask_that_cannot_be_imported_is_ignored_with_a_warning(bare_python, home, tmp_path):
    (tmp_path / "cwd" / "dask").mkdir(parents=True)
    (tmp_path / "cwd" / "dask" / "__init__.py").write_text("import what_dask_lacks")
    code = f"import distributed.config; print(distributed.config.get({CONNECT!r}))"
    done = run_in(bare_python, code, env=home, cwd=tmp_path / "cwd")
    assert done.stdout == "30s\n"
    assert "dask is installed but cannot be imported" in done.stderr
    assert "what_dask_lacks" in done.stderr


# config_store by itself


@pytest.mark.parametrize(
    ("old", "new", "priority", "expected"),
    [
        ({"a": 1}, {"b": 2}, "new", {"a": 1, "b": 2}),
        ({"a": {"x": 1}}, {"a": {"y": 2}}, "new", {"a": {"x": 1, "y": 2}}),
        ({"a": {"x": 1}}, {"a": {"x": 2}}, "old", {"a": {"x": 1}}),
        ({"a-b": {"c": 1}}, {"a_b": {"d": 1}}, "new", {"a-b": {"c": 1, "d": 1}}),
        ({"a": None}, {"a": {"x": 1}}, "old", {"a": {"x": 1}}),
        ({"a": 5}, {"a": {"x": 1}}, "new", {"a": {"x": 1}}),
        ({"a": 5}, {"a": {"x": 1}}, "old", {"a": 5}),
        ({"a": {"x": 1}}, {"a": None}, "new", {"a": None}),
        ({"a": {"x": 1}}, {"a": None}, "old", {"a": {"x": 1}}),
    ],
)
def test_update_merges_section_by_section(old, new, priority, expected):
    assert config_store.update(old, new, priority) == expected


def test_new_defaults_replace_only_old_defaults():
    config = {"a": {"x": "default", "y": "configured"}}
    new = {"a": {"x": "new", "y": "new", "z": "new"}}
    defaults = {"a": {"x": "default", "y": "default"}}
    config_store.update(config, new, "new-defaults", defaults)
    assert config == {"a": {"x": "new", "y": "configured", "z": "new"}}


def test_merge_does_not_change_its_arguments():
    first, second = {"a": {"x": 1}}, {"a": {"y": 2}}
    assert config_store.merge(first, second) == {"a": {"x": 1, "y": 2}}
    assert (first, second) == ({"a": {"x": 1}}, {"a": {"y": 2}})


def test_setting_a_key_inside_a_value_is_an_error_and_changes_nothing():
    config = {"foo": {"a": 1}}
    with pytest.raises(ValueError, match=r"cannot set 'foo\.a\.b': 'foo\.a' is 1, not a section"):
        config_store.set({"foo.new": 2, "foo.a.b": 3}, config=config)
    assert config == {"foo": {"a": 1}}


def test_a_key_inside_null_can_be_set():
    config = {"foo": None}
    with config_store.set({"foo.a.b": 1}, config=config):
        assert config == {"foo": {"a": {"b": 1}}}
    assert config == {"foo": None}


def test_contradicting_environment_variables_are_an_error_that_names_them():
    with pytest.raises(ValueError, match=r"DASK_FOO__BAR='2': cannot set 'foo\.bar': 'foo' is 1"):
        config_store.collect_env({"DASK_FOO": "1", "DASK_FOO__BAR": "2"})


def test_variables_with_the_location_of_configuration_are_not_keys():
    env = {"DASK_CONFIG": "x", "DASK_ROOT_CONFIG": "y", "PATH": "z"}
    assert config_store.collect_env(env) == {}


@pytest.mark.parametrize("text", ["???", "WzFd"])
def test_malformed_inherited_values_are_an_error_that_names_the_variable(text):
    with pytest.raises(ValueError, match="DASK_INTERNAL_INHERIT_CONFIG must be base64"):
        config_store.collect_env({"DASK_INTERNAL_INHERIT_CONFIG": text})


def test_the_end_of_set_restores_a_section_that_was_removed_meanwhile():
    config: dict = {"a": {"b": {"c": 1}}}
    with config_store.set({"a.b.c": 2}, config=config):
        config.clear()
    assert config == {"a": {"b": {"c": 1}}}
