"""The wheel in which dask.distributed's roles stand on this core."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from distributed import __version__
from distributed.graft import OURS, TESTED_VERSIONS, GraftError, graft, main
from distributed.tests.environments import ROOT, run_in
from distributed.tests.grafts import VERSION, original_wheel, pip

GRAFTED = f"{VERSION}+core.{__version__}"
INFO = f"distributed-{GRAFTED}.dist-info"


@pytest.fixture(scope="module")
def original():
    return original_wheel()


@pytest.fixture(scope="module")
def grafted(original, tmp_path_factory):
    return graft(str(original), tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def empty_environment(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    return tmp_path / "env" / "bin" / "python"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_the_name_of_the_wheel_has_the_versions_of_both(grafted):
    assert grafted.name == f"distributed-{GRAFTED}-py3-none-any.whl"


def test_record_lists_every_file_with_its_hash_and_size(grafted):
    files = contents(grafted)
    rows = list(csv.reader(io.StringIO(files[f"{INFO}/RECORD"].decode())))
    assert [name for name, _, _ in rows] == list(files)
    for name, digest, size in rows[:-1]:
        expected = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=")
        assert (digest, int(size)) == (f"sha256={expected.decode()}", len(files[name]))
    assert rows[-1] == [f"{INFO}/RECORD", "", ""]


def test_metadata_names_both_projects_and_requires_what_the_original_does(original, grafted):
    def headers(wheel, info):
        return HeaderParser().parsestr(contents(wheel)[f"{info}/METADATA"].decode())

    ours = headers(grafted, INFO)
    theirs = headers(original, f"distributed-{VERSION}.dist-info")
    assert ours["Version"] == GRAFTED
    assert "dask.distributed" in ours["Author"]
    assert "distributed-core" in ours["Author"]
    assert ours.get_all("Requires-Dist") == theirs.get_all("Requires-Dist")
    licences = [f"{INFO}/licenses/{name}" for name in ours.get_all("License-File")]
    assert len(licences) == 2
    assert all(contents(grafted)[name] for name in licences)


def test_the_networking_core_is_ours_and_everything_else_the_originals(original, grafted):
    before, after = contents(original), contents(grafted)
    package = Path(sys.modules["distributed"].__file__).parent
    ours = tuple(f"distributed/{name}" for name in OURS)
    for name, data in after.items():
        if not name.startswith("distributed/"):
            continue
        if name.startswith(ours):
            assert data == (package.parent / name).read_bytes()
            assert "/tests/" not in name
        else:
            assert data == before[name]
    replaced = {"distributed/core.py", "distributed/security.py"}
    kept = {name for name in before if name.startswith("distributed/")} - replaced
    assert {name for name in kept if not name.startswith(ours)} <= set(after)
    assert not replaced & set(after)


def test_equal_inputs_give_equal_wheels(original, grafted, tmp_path):
    assert graft(str(original), tmp_path).read_bytes() == grafted.read_bytes()


def rewritten(wheel: Path, target: Path, old: bytes, new: bytes) -> Path:
    """Write a copy of a wheel whose METADATA has *new* for *old*."""
    with zipfile.ZipFile(target, "w") as file:
        for name, data in contents(wheel).items():
            file.writestr(name, data.replace(old, new, 1) if name.endswith("/METADATA") else data)
    return target


def test_a_version_that_was_not_tested_is_refused_unless_forced(original, tmp_path):
    other = rewritten(original, tmp_path / "other.whl", VERSION.encode(), b"1999.1.0")
    with pytest.raises(
        GraftError, match=rf"1999\.1\.0 was not tested.*{TESTED_VERSIONS[0]}.*--force"
    ):
        graft(str(other), tmp_path)
    assert graft(str(other), tmp_path, force=True).name.startswith("distributed-1999.1.0+core.")


def test_a_wheel_of_another_project_is_refused(original, tmp_path):
    other = rewritten(original, tmp_path / "x.whl", b"Name: distributed", b"Name: something")
    with pytest.raises(GraftError, match=r"not a wheel of dask\.distributed.*'something'"):
        graft(str(other), tmp_path)


def test_a_grafted_wheel_is_refused(grafted, tmp_path):
    with pytest.raises(GraftError, match="was grafted already"):
        graft(str(grafted), tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip file"])
def test_a_file_that_is_not_a_wheel_is_refused(tmp_path, content):
    path = tmp_path / "some.whl"
    path.write_bytes(content)
    with pytest.raises(GraftError, match="not a wheel"):
        graft(str(path), tmp_path)


def test_an_archive_without_metadata_is_refused(tmp_path):
    path = tmp_path / "some.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "b")
    with pytest.raises(GraftError, match="0 METADATA files"):
        graft(str(path), tmp_path)


def test_the_command_line_prints_the_path_or_one_line_of_error(original, tmp_path, capsys):
    assert main([str(original), "--output", str(tmp_path)]) == 0
    assert Path(capsys.readouterr().out.strip()).exists()
    assert main(["no-such-thing", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == "error: 'no-such-thing' is neither a file nor a version such as 2026.8.0\n"


def test_an_output_that_cannot_be_a_directory_is_refused(original, tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(GraftError, match=f"write to {path}: .*exists"):
        graft(str(original), path)


def test_a_damaged_wheel_is_refused(original, tmp_path):
    damaged = bytearray(original.read_bytes())
    damaged[5000:6000] = bytes(1000)
    path = tmp_path / "some.whl"
    path.write_bytes(damaged)
    with pytest.raises(GraftError, match="not a wheel"):
        graft(str(path), tmp_path)


def test_a_version_that_was_not_tested_is_refused_before_its_download(tmp_path):
    with pytest.raises(GraftError, match=r"1\.7\.0 was not tested"):
        graft("1.7.0", tmp_path)


def test_the_documentation_names_the_wheel_of_this_version(grafted):
    text = (ROOT / "docs" / "dask.rst").read_text()
    assert set(re.findall(r"distributed-\S+\.whl", text)) == {grafted.name}


@pytest.mark.parametrize("order", ["alone", "over the original", "before the original"])
def test_the_wheel_installs_and_uninstalls_without_leaving_anything(
    original, grafted, empty_environment, order
):
    wheels = {
        "alone": [grafted],
        "over the original": [original, grafted],
        "before the original": [grafted, original, grafted],
    }[order]
    for wheel in wheels:
        pip("install", "--no-deps", "--force-reinstall", wheel, python=empty_environment)
    shown = pip("show", "distributed", python=empty_environment)
    assert f"Version: {GRAFTED}" in shown
    pip("uninstall", "--yes", "distributed", python=empty_environment)
    site_packages = next((empty_environment.parents[1] / "lib").glob("python*/site-packages"))
    assert not [path.name for path in site_packages.iterdir() if path.name.startswith("dist")]


def test_versions_are_those_of_the_original_and_one_attribute_tells_the_core(grafted_python):
    pip("check", python=grafted_python)
    code = """
        import distributed, importlib.metadata
        print(distributed.__version__)
        print(importlib.metadata.version("distributed"))
        print(distributed.core.__core_version__)
    """
    assert run_in(grafted_python, code).stdout.split() == [VERSION, GRAFTED, __version__]


def test_each_line_is_logged_once_in_the_format_of_the_original(grafted_python):
    code = """
        import distributed
        from distributed.base.logs import get_logger
        get_logger("distributed.core").info("said %s", "this")
        get_logger("distributed.core").debug("said %s", "nothing")
    """
    lines = run_in(grafted_python, code).stderr.splitlines()
    assert [line.partition(" - ")[2] for line in lines] == ["distributed.core - INFO - said this"]
