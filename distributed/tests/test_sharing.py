"""Files that several environments have in common are on disk once."""

from __future__ import annotations

import base64
import hashlib

import pytest

from distributed.tests.sharing import MINIMUM_SIZE, remove_unused, share_files

LARGE = b"x" * MINIMUM_SIZE
OTHER = b"y" * MINIMUM_SIZE


def hashed(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"sha256={digest}"


@pytest.fixture
def packages(tmp_path):
    """A function that makes the packages directory of a new environment with one library."""

    def make(environment: str, **files: bytes):
        directory = tmp_path / environment
        (directory / "library-1.dist-info").mkdir(parents=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)
        record = [f"{name},{hashed(x)},{len(x)}" for name, x in files.items()]
        record.append("library-1.dist-info/RECORD,,")
        (directory / "library-1.dist-info" / "RECORD").write_text("\n".join(record))
        (directory / "library-1.dist-info" / "METADATA").write_text("Name: library\nVersion: 1\n")
        return directory

    return make


def test_equal_files_of_two_environments_are_one_file(packages, tmp_path):
    one, two = packages("one", a=LARGE, b=OTHER), packages("two", a=LARGE, b=LARGE)
    assert share_files(one, tmp_path / "store") == 0
    assert share_files(two, tmp_path / "store") == 2 * MINIMUM_SIZE
    assert (one / "a").samefile(two / "a")
    assert (two / "a").samefile(two / "b")
    assert (one / "b").read_bytes() == OTHER
    assert not (one / "b").samefile(two / "b")


def test_small_files_stay_copies(packages, tmp_path):
    one, two = packages("one", a=LARGE[1:]), packages("two", a=LARGE[1:])
    assert share_files(one, tmp_path / "store") + share_files(two, tmp_path / "store") == 0
    assert not (one / "a").samefile(two / "a")


def test_a_file_that_does_not_have_its_recorded_size_stays_as_it_is(packages, tmp_path):
    one, two = packages("one", a=LARGE), packages("two", a=LARGE)
    (two / "a").write_bytes(LARGE + b"changed")
    share_files(one, tmp_path / "store")
    share_files(two, tmp_path / "store")
    assert (one / "a").read_bytes() == LARGE
    assert (two / "a").read_bytes() == LARGE + b"changed"


def test_missing_files_are_no_error(packages, tmp_path):
    one = packages("one", a=LARGE)
    (one / "a").unlink()
    assert share_files(one, tmp_path / "store") == 0


def test_files_that_no_environment_uses_are_removed(packages, tmp_path):
    one = packages("one", a=LARGE, b=OTHER)
    share_files(one, tmp_path / "store")
    (one / "a").unlink()
    remove_unused(tmp_path / "store")
    assert [x.read_bytes() for x in (tmp_path / "store").iterdir()] == [OTHER]
