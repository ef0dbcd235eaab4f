"""Libraries are imported when one of their objects is seen, and no earlier."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.protocol.dispatch import MODULES

ROOT = Path(__file__).parents[3]

#: What makes an object of each library that can be tried without special hardware.
OBJECTS = {
    "numpy": "numpy.arange(3)",
    "scipy": "__import__('scipy.sparse').sparse.eye(3, format='csr')",
    "sparse": "sparse.COO.from_numpy(__import__('numpy').eye(3))",
    "pyarrow": "pyarrow.table({'a': [1]})",
    "torch": "torch.ones(3)",
}


def loaded_after(code):
    """Which data libraries, and modules for them, a fresh process has loaded after *code*."""
    watched = [*MODULES, *MODULES.values(), "pandas", "polars"]
    report = f"import json, sys; print(json.dumps([m for m in {watched} if m in sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_nothing_of_a_library_is_loaded_by_sending_other_things():
    assert (
        loaded_after(
            "from distributed.protocol import *\n"
            "import distributed.core\n"
            "loads(dumps({'x': Serialize([b'a', 1, {'b': 2.5}]), 'y': 1j}))"
        )
        == []
    )


@pytest.mark.parametrize("library", OBJECTS)
def test_a_library_s_module_is_loaded_with_its_first_object(library):
    if not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    make = f"import {library}; x = {OBJECTS[library]}; from distributed.protocol import serialize"
    assert MODULES[library] not in loaded_after(make)
    assert MODULES[library] in loaded_after(f"{make}; serialize(x)")


@pytest.mark.parametrize("library", OBJECTS)
def test_a_library_is_loaded_by_a_message_that_holds_one_of_its_objects(library):
    if not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    write = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import {library}; from distributed.protocol import *\n"
            f"print([bytes(f) for f in dumps(Serialize({OBJECTS[library]}))])",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    read = f"from distributed.protocol import *\nm = loads({write.stdout}, deserialize=%s)"
    assert loaded_after(read % False) == []
    assert {library, MODULES[library]} <= set(loaded_after(read % True))


@pytest.mark.parametrize("library", MODULES)
def test_each_module_that_is_named_is_there(library):
    name = MODULES[library]
    if name.startswith("distributed."):
        assert importlib.util.find_spec(name)
