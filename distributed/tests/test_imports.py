"""The cost of importing the package, and the size of its modules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import distributed
from distributed.protocol.dispatch import MODULES as MODULES_OF_LIBRARIES
from distributed.tests.environments import run_here

PACKAGE = Path(__file__).parents[1]
REQUIRED = {"tornado", "msgpack", "cloudpickle"}
#: Maximum number of lines of a module, and of a test module, whose tests are independent.
LONGEST = 600
LONGEST_TEST = 1000

MODULES = sorted(PACKAGE.rglob("*.py"))
PUBLIC_MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in MODULES
    if "tests" not in path.parts
)

LIST_THIRD_PARTY = """
import json, sys
before = set(sys.modules)
import {module}
new = set(sys.modules) - before
# modules that compiled code creates at run time (``_cython_3_0``) have no file
loaded = {{name.partition(".")[0] for name in new if getattr(sys.modules[name], "__file__", None)}}
print(json.dumps(sorted(loaded - sys.stdlib_module_names - {{"distributed"}})))
"""


# The others are imported when the first object of their library is serialized, or by its users.
OF_LIBRARIES = {
    *MODULES_OF_LIBRARIES.values(),
    "distributed.core.tracing",
    "distributed.testing.plugin",
}
#: What the command line needs; the two modules that say so do not.
OF_CLICK = {name for name in PUBLIC_MODULES if name.startswith("distributed.cli.")}
OF_CLICK -= {"distributed.cli.__main__", "distributed.cli.exit_codes"}
INDEPENDENT_MODULES = [name for name in PUBLIC_MODULES if name not in OF_LIBRARIES | OF_CLICK]


@pytest.mark.parametrize("module", INDEPENDENT_MODULES)
def test_importing_a_module_loads_only_required_packages(module):
    run = run_here(LIST_THIRD_PARTY.format(module=module))
    assert run.stderr == ""
    assert set(json.loads(run.stdout)) <= REQUIRED


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_short(path):
    longest = LONGEST_TEST if path.name.startswith("test_") else LONGEST
    assert len(path.read_text().splitlines()) <= longest


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_has_a_docstring(path):
    text = path.read_text().lstrip()
    is_test = path.name.startswith("test_")
    assert not text or is_test or text.startswith('"""')


@pytest.mark.parametrize(
    "package",
    [
        "",
        "base",
        "cli",
        "comm",
        "core",
        "pages",
        "protocol",
        "scratch",
        "security",
        "telemetry",
        "testing",
    ],
    ids=lambda package: package or "distributed",
)
def test_each_folder_has_its_tests(package):
    assert (PACKAGE / package / "tests" / "__init__.py").exists()


@pytest.mark.parametrize("name", sorted(distributed._SUBMODULES))
def test_a_submodule_is_an_attribute_of_the_package_without_being_imported(name):
    code = (
        f"import distributed, sys; assert distributed.{name} is sys.modules['distributed.{name}']"
    )
    run_here(code)
