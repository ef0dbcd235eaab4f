"""A library's serializers are loaded when one of its objects is seen, and not before."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.protocol.dispatch import MODULES

ROOT = Path(__file__).parents[3]

#: An expression for an object of each library that does not need special hardware.
OBJECTS = {
    "numpy": "numpy.arange(3)",
    "scipy": "__import__('scipy.sparse').sparse.eye(3, format='csr')",
    "sparse": "sparse.COO.from_numpy(__import__('numpy').eye(3))",
    "pyarrow": "pyarrow.table({'a': [1]})",
    "torch": "torch.ones(3)",
}


@pytest.fixture(params=OBJECTS)
def library(request):
    if not importlib.util.find_spec(request.param):
        pytest.skip(f"{request.param} is not installed")
    return request.param


def run(code):
    code = f"from distributed.protocol import *\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(code):
    """Return the data libraries, and modules for them, that a new process loads to run *code*."""
    watched = [*MODULES, *MODULES.values(), "pandas", "polars"]
    report = f"import json, sys; print(json.dumps([m for m in {watched} if m in sys.modules]))"
    return json.loads(run(f"{code}\n{report}"))


def test_no_library_is_loaded_for_builtin_objects():
    code = "import distributed.core; loads(dumps({'x': Serialize([b'a', 1, {'b': 2.5}]), 'y': 1j}))"
    assert loaded_after(code) == []


def test_serializers_are_loaded_for_the_first_object_of_a_library(library):
    make = f"import {library}; x = {OBJECTS[library]}"
    assert MODULES[library] not in loaded_after(make)
    assert MODULES[library] in loaded_after(f"{make}; serialize(x)")


def test_a_library_is_loaded_to_deserialize_one_of_its_objects(library):
    frames = f"dumps(Serialize({OBJECTS[library]}))"
    written = run(f"import {library}; print([bytes(frame) for frame in {frames}])")
    assert loaded_after(f"m = loads({written}, deserialize=False)") == []
    loaded = loaded_after(f"m = loads({written}, deserialize=True)")
    assert {library, MODULES[library]} <= set(loaded)


@pytest.mark.parametrize("library_module", sorted(set(MODULES.values())))
def test_each_listed_module_of_this_package_exists(library_module):
    if library_module.startswith("distributed."):
        assert importlib.util.find_spec(library_module)
