"""The review of the configuration: values, sources, meanings, and misspelt keys."""

from __future__ import annotations

import json

import pytest

from distributed.base import config
from distributed.base.config_keys import KEYS
from distributed.base.config_names import nearest_key
from distributed.base.config_review import HIDDEN, settings, unknown_keys
from distributed.tests.environments import run_in

CONNECT = "distributed.comm.timeouts.connect"


def setting(key):
    return next(each for each in settings() if each.key == key)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_has_a_meaning_which_is_a_sentence(key):
    meaning = KEYS[key].meaning
    assert meaning[0].isupper()
    assert meaning.endswith(".")
    assert "  " not in meaning


@pytest.mark.parametrize("key", [key for key in KEYS if KEYS[key].kind.null])
def test_the_meaning_of_null_is_given_unless_it_is_that_of_an_empty_list(key):
    assert "null" in KEYS[key].meaning or KEYS[key].default in ([], False, "8MiB")


def test_the_review_lists_every_key():
    assert [each.key for each in settings()] == list(KEYS)


def test_the_source_of_a_value_is_the_default_a_variable_a_file_or_set(tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"distributed": {"comm": {"shard": "3MiB"}}}))
    monkeypatch.setattr(config, "_bound_store", config.config_store)
    monkeypatch.setattr(config.config_store, "paths", [str(tmp_path)])
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__SOCKET_BACKLOG", "77")
    values = {
        "distributed.comm.shard": "3MiB",
        "distributed.comm.socket-backlog": 77,
        "distributed.comm.offload": "1MiB",
    }
    with config.set(values):
        assert setting("distributed.comm.shard").source == f"file {str(path)!r}"
        backlog = setting("distributed.comm.socket-backlog")
        assert backlog.source == "environment variable DASK_DISTRIBUTED__COMM__SOCKET_BACKLOG"
        assert (backlog.value, backlog.default) == (77, 2048)
        assert setting("distributed.comm.offload").source.startswith("distributed.config.set")
        assert setting("distributed.comm.max-frames").source == "default"


def test_a_variable_that_repeats_the_default_is_the_source(monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__SOCKET_BACKLOG", "2048")
    assert setting("distributed.comm.socket-backlog").source.startswith("environment")


def test_a_secret_is_not_shown():
    with config.set({"distributed.comm.auth.token": "a secret of 32 characters or so"}):
        assert setting("distributed.comm.auth.token").value == HIDDEN


def test_a_value_that_makes_no_sense_has_an_error():
    with config.set({CONNECT: "soon"}):
        found = setting(CONNECT)
    assert found.value == "soon"
    assert "'soon'" in found.error
    with config.set({"distributed.comm.timeouts": 3}):
        assert "must be a section" in setting(CONNECT).error


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("distributed.comm.timeouts.conect", CONNECT),
        ("distributed.comm.timeout.connect", CONNECT),
        ("distributed.comm.connect", CONNECT),
        ("distributed.coms.timeouts.connect", CONNECT),
        ("distribted.comm.timeouts.connect", CONNECT),
        ("distributed.admin.log_limits", "distributed.admin.log-limit"),
        ("distributed.admin.sistem-monitor.disk", "distributed.admin.system-monitor.disk"),
        ("distributed.flavour", None),
    ],
)
def test_an_unknown_key_is_found_with_the_nearest_one(key, near):
    with config.set({key: 1}):
        assert [(each.key, each.nearest) for each in unknown_keys()] == [
            (key.replace("_", "-"), near)
        ]


@pytest.mark.parametrize("key", ["array.slicing", "distributed.comm.tls", "distributed.comm"])
def test_sections_and_keys_of_other_packages_are_not_reported(key):
    with config.set({key: None}):
        assert unknown_keys() == []


def test_no_key_of_the_original_is_taken_for_a_misspelt_one(original_python):
    code = """
        import json, dask.config, distributed
        def leaves(section, prefix=""):
            for name, value in section.items():
                if isinstance(value, dict) and value:
                    yield from leaves(value, f"{prefix}{name}.")
                else:
                    yield prefix + name
        print(json.dumps(list(leaves(dask.config.config))))
    """
    theirs = {key.replace("_", "-") for key in json.loads(run_in(original_python, code).stdout)}
    assert len(theirs) > 150
    near = {key: nearest_key(key, KEYS) for key in theirs - set(KEYS)}
    assert {key: other for key, other in near.items() if other is not None} == {}
