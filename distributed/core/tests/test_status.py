"""The states, their pickles and their wire form."""

from __future__ import annotations

import pickle

import pytest

import distributed.core
from distributed.core.status import Status
from distributed.protocol import dumps, loads
from distributed.tests.environments import run_in

NAMES = [
    "undefined",
    "created",
    "init",
    "starting",
    "running",
    "paused",
    "stopping",
    "stopped",
    "closing",
    "closing_gracefully",
    "closed",
    "failed",
    "dont_reply",
]


def test_the_members_and_their_order_are_those_of_the_original():
    assert [member.name for member in Status] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_value_is_its_name(name):
    assert Status[name].value == name
    assert Status(name) is Status[name]


def test_lookup_maps_names_to_members_and_is_not_a_member():
    assert Status.lookup == dict(Status.__members__)
    assert "lookup" not in Status.__members__


def test_repr_and_str_name_the_member():
    assert repr(Status.running) == "<Status.running: 'running'>"
    assert str(Status.running) == "Status.running"


def test_a_member_is_not_equal_to_its_name():
    name: object = "running"
    assert Status.running != name


def test_the_module_of_the_class_is_that_of_the_original():
    assert Status.__module__ == "distributed.core"
    assert Status.__qualname__ == "Status"


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_member_is_loaded_as_itself(name):
    assert distributed.core.Status is Status
    assert pickle.loads(pickle.dumps(Status[name])) is Status[name]


def test_a_pickle_contains_the_module_of_the_original():
    data = pickle.dumps(Status.running, protocol=4)
    assert b"distributed.core" in data
    assert b"distributed.core.status" not in data


def test_a_member_in_a_message_is_loaded_as_itself():
    frames = dumps({"status": Status.paused})
    assert b"distributed.core" in bytes(frames[0])
    assert loads(frames) == {"status": Status.paused}


def test_the_original_loads_the_pickle_of_a_member(original_python):
    code = f"import pickle; print(repr(pickle.loads({pickle.dumps(Status.paused)!r})))"
    assert run_in(original_python, code).stdout == "<Status.paused: 'paused'>\n"
