"""``config``: all keys with value, source and meaning; the check."""

from __future__ import annotations

import pytest

from distributed.base import config
from distributed.base.config_keys import KEYS
from distributed.cli import exit_codes
from distributed.cli.tests.test_program import assert_is_one_error

SHARD = "distributed.comm.shard"


def test_every_key_is_shown_with_value_and_meaning(cli):
    result = cli("config")
    assert (result.code, result.err) == (0, "")
    for key, entry in KEYS.items():
        assert f"{key}: " in result.out
        assert entry.meaning in result.out


def test_a_value_that_is_set_is_shown_with_its_source_and_the_default(cli, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__SHARD", "33MB")
    with config.set({SHARD: "33MB"}):
        lines = cli("config", SHARD).lines
    assert lines[0] == f"{SHARD}: 33MB"
    source = "environment variable DASK_DISTRIBUTED__COMM__SHARD"
    assert lines[1] == f"    from {source}; the default is 64MiB"


def test_a_section_selects_its_keys(cli):
    shown = [it["key"] for it in cli("config", "distributed.comm.timeouts", "--json").json]
    assert shown == [key for key in KEYS if key.startswith("distributed.comm.timeouts.")]


def test_only_changed_keys_are_shown_on_request(cli):
    with config.set({SHARD: "33MB"}):
        changed = {it["key"]: it["value"] for it in cli("config", "--changed", "--json").json}
    assert changed[SHARD] == "33MB"
    assert len(changed) < 5


def test_a_secret_is_not_shown(cli):
    with config.set({"distributed.comm.auth.token": "a secret of 32 characters or so"}):
        for options in ([], ["--json"]):
            assert "a secret of" not in cli("config", *options).out


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("distributed.comm.timeouts.conect", "did you mean 'distributed.comm.timeouts.connect'?"),
        ("distributed.comm.timeout", "did you mean 'distributed.comm.timeouts'?"),
        ("zzz", "expected one of ['distributed.admin',"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(cli, key, near):
    assert_is_one_error(cli("config", key), exit_codes.USAGE, repr(key), near)


def test_the_check_of_a_good_configuration_succeeds(cli):
    assert cli("config", "--check") == (0, "No mistake was found.\n", "")
    assert cli("config", "--check", "--json").json["ok"] is True


def test_the_check_finds_misspelt_keys_and_invalid_values(cli):
    values = {"distributed.comm.timeouts.conect": "1s", SHARD: "much", "distributed.colour": 1}
    with config.set(values):
        result = cli("config", "--check")
        found = cli("config", "--check", "--json")
    assert (result.code, found.code) == (exit_codes.FAILED, exit_codes.FAILED)
    assert "did you mean 'distributed.comm.timeouts.connect'?" in result.out
    assert f"Configuration key {SHARD!r} is 'much'" in result.out
    assert "Note: 'distributed.colour'" in result.out
    assert [it["key"] for it in found.json["invalid"]] == [SHARD]
    assert found.json["misspelt"] == [
        {
            "key": "distributed.comm.timeouts.conect",
            "source": "distributed.config.set or dask.config.set",
            "nearest": "distributed.comm.timeouts.connect",
        }
    ]
    assert [it["key"] for it in found.json["unknown"]] == ["distributed.colour"]


def test_a_key_of_another_package_is_not_a_mistake(cli):
    with config.set({"distributed.colour": 1, "array.slicing": 2}):
        assert cli("config", "--check").code == 0


def test_an_invalid_value_is_shown_with_its_error(cli):
    with config.set({SHARD: "much"}):
        result = cli("config", SHARD)
    assert result.code == 0
    assert "Error: Configuration key 'distributed.comm.shard' is 'much'" in result.out
