"""The wheel and the source distribution: what they contain, and that they work."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import distributed
from distributed.tests.environments import ROOT, clean_environ, run_in
from distributed.tests.grafts import original_wheel

PACKAGE = ROOT / "distributed"
HERE = Path(sys.executable)

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
SITE = SETUP["metadata"]["url"]

#: A private key in PEM format; the modules name the format without such a line.
KEY = re.compile(rb"^-----BEGIN [A-Z ]*PRIVATE KEY-----$", re.MULTILINE)

USER_TEST = """
import os, sys
from distributed.utils_test import inc, tls_security

def test_a_server(distributed_server, distributed_rpc, distributed_leak_check):
    # The entry point of the wheel loaded the plugin.
    plugin = sys.modules["distributed.testing.plugin"]
    assert plugin.__file__.startswith(os.environ["PYTHONPATH"] + os.sep)
    security = tls_security()
    server = distributed_server({"inc": inc}, "tls://127.0.0.1:0", security=security)
    assert distributed_rpc(server, security=security).inc(x=1) == 2
"""


def run(*command: str | Path, cwd: Path, **variables: str | Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environ({name: str(value) for name, value in variables.items()}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both distributions, built as ``make packages`` does, and unpacked."""
    if not (ROOT / "MANIFEST.in").exists():
        pytest.skip("the source tree is incomplete")
    pytest.importorskip("build")
    directory = tmp_path_factory.mktemp("packages")
    options = ("--no-isolation", "--outdir", directory / "dist")
    run(HERE, "-m", "build", *options, ROOT, cwd=directory)
    (wheel,) = (directory / "dist").glob("*.whl")
    (source,) = (directory / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "wheel")
    with tarfile.open(source) as archive:
        archive.extractall(directory / "source", filter="data")
    return directory


@pytest.fixture(scope="module")
def source(built: Path) -> Path:
    (directory,) = (built / "source").iterdir()
    return directory


def files_in(directory: Path) -> dict[str, Path]:
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*")}
    return {
        name: path for name, path in found.items() if path.is_file() and "__pycache__" not in name
    }


@pytest.fixture(scope="module")
def metadata(built: Path):
    (file,) = (built / "wheel").glob("*.dist-info/METADATA")
    return HeaderParser().parsestr(file.read_text(encoding="utf-8"))


def test_the_wheel_has_each_file_of_the_package_but_no_tests(built):
    expected = {
        f"distributed/{name}" for name in files_in(PACKAGE) if "tests" not in name.split("/")
    }
    shipped = files_in(built / "wheel")
    assert {name for name in shipped if name.startswith("distributed/")} == expected
    assert {name.partition("/")[0].partition("-")[0] for name in shipped} == {
        "distributed",
        "distributed_core",
    }


def test_the_wheel_has_no_private_key(built):
    with_key = [
        name for name, path in files_in(built / "wheel").items() if KEY.search(path.read_bytes())
    ]
    assert with_key == []
    assert KEY.search((PACKAGE / "tests" / "data" / "localhost.pem").read_bytes())


def test_tls_security_and_the_pytest_plugin_work_from_the_wheel(built, tmp_path):
    (tmp_path / "test_user.py").write_text(USER_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    output = run(
        *(HERE, "-m", "pytest", "-p", "no:cacheprovider", "-q"),
        cwd=tmp_path,
        PYTHONPATH=built / "wheel",
    )
    assert "1 passed" in output


def test_the_source_distribution_has_each_file_of_the_repository(source):
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a checkout")
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    existing = {name for name in tracked if name and (ROOT / name).exists()}
    assert existing - files_in(source).keys() == set()


def test_the_source_distribution_passes_its_tests(source):
    # A part of them: all tests take many minutes.
    tests = "base/tests/test_buffers.py base/tests/test_text.py security/tests"
    output = run(
        *(HERE, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *(f"distributed/{test}" for test in tests.split()),
        cwd=source,
        PYTHONPATH=source,
    )
    assert " passed" in output
    where = run(HERE, "-c", "import distributed; print(distributed.__file__)", cwd=source)
    assert where.strip() == str(source / "distributed" / "__init__.py")


def test_the_metadata_name_version_authors_addresses_and_interpreters(metadata):
    assert metadata["Version"] == distributed.__version__
    assert metadata["Author"] == "the distributed-core developers"
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert urls.keys() >= {"Changelog", "Documentation", "Issues", "Source"}
    assert all(url.startswith("https://") for url in urls.values())
    assert {"dask", "rpc"} <= set(re.split(r",\s*", metadata["Keywords"]))
    releases = {
        line.rpartition(" ")[2]
        for line in metadata.get_all("Classifier")
        if line.startswith("Programming Language :: Python :: 3.")
    }
    assert releases == {"3.11", "3.12", "3.13", "3.14"}


def test_the_links_of_the_readme_are_absolute_and_their_pages_exist(metadata):
    text = metadata.get_payload()
    assert text == (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((.*?)\)", text)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    pages = [link.removeprefix(f"{SITE}/en/stable/") for link in links if link.startswith(SITE)]
    existing = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.rst")}
    assert set(pages) - existing == set()


# dask.distributed in the same directory

MIXED = """
    import sys, warnings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import distributed
            import distributed.core
        except Exception as error:
            print(type(error), error, file=sys.stderr)
    print(*[w.message for w in caught if "distributed-core and" in str(w.message)], sep="\\n")
"""


@pytest.mark.parametrize("last", ["this package", "dask.distributed"])
def test_a_mixed_installation_is_a_warning(built, tmp_path, original_python, last):
    wheels = [original_wheel(), *(built / "dist").glob("*.whl")]
    if last == "dask.distributed":
        wheels.reverse()
    for wheel in wheels:  # as pip does
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path)
    messages = run_in(original_python, MIXED, env={"PYTHONPATH": str(tmp_path)}).stdout.splitlines()
    assert len(messages) == 1
    assert str(tmp_path / "distributed") in messages[0]
    assert "python -m distributed.graft" in messages[0]


@pytest.mark.parametrize("name", ["Client", "LocalCluster", "worker_client"])
def test_importing_a_name_of_dask_tells_where_it_is(name):
    with pytest.raises(ImportError) as info:
        exec(f"from distributed import {name}")
    with pytest.raises(AttributeError) as looked_up:
        getattr(distributed, name)
    assert str(info.value) == str(looked_up.value)
    assert f"{name} is in dask.distributed" in str(info.value)
    assert not hasattr(distributed, name)
