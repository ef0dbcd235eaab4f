"""Fixtures for the tests in this directory."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager

import pytest

from distributed.tests.environments import ORIGINAL, _or_skip


@pytest.fixture(scope="session")
def original_python_with_codecs():
    """A Python with the original and all compression libraries that it supports."""
    requirements = [ORIGINAL, "lz4", "python-snappy", "zstandard"]
    return _or_skip("original-codecs", requirements, project=False)


@pytest.fixture
def memory_below():
    """A context manager; its block must not allocate *maximum* bytes of Python's memory."""

    @contextmanager
    def check(maximum):
        tracemalloc.start()
        try:
            yield
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < maximum

    return check
