"""The modules that give names of the floors by the names of the original's modules."""

from __future__ import annotations

import asyncio
import importlib

import pytest

#: Door → the floor modules of its names.
DOORS = {
    "_async_taskgroup": ["base.event_loop"],
    "comm.utils": ["comm.addressing", "comm.offloading"],
    "config": ["base.config", "base.log_setup"],
    "counter": ["telemetry.counter"],
    "diskutils": ["scratch.workspace"],
    "metrics": ["telemetry.meter"],
    "system_monitor": ["telemetry.monitor"],
    "utils": [
        "base.buffers",
        "base.callables",
        "base.event_loop",
        "base.host_addresses",
        "base.quantities",
    ],
}


def module(name):
    return importlib.import_module(f"distributed.{name}")


@pytest.mark.parametrize("door", DOORS)
def test_the_names_of_a_door_are_the_objects_of_its_floors(door):
    floors = [vars(module(name)) for name in DOORS[door]]
    for name in module(door).__all__:
        sources = [floor[name] for floor in floors if name in floor]
        if (door, name) == ("utils", "TimeoutError"):
            sources = [asyncio.TimeoutError]
        if (door, name) == ("comm.utils", "OFFLOAD_THRESHOLD"):
            sources = [module("comm.offloading").OFFLOAD_THRESHOLD]
        assert getattr(module(door), name) is sources[0], name


@pytest.mark.parametrize("name", ["config", "paths"])
def test_the_door_to_the_configuration_has_the_attributes_of_the_module_in_use(name):
    assert getattr(module("config"), name) is getattr(module("base.config"), name)
