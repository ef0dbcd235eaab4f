"""Fixtures for the tests in this directory."""

from __future__ import annotations

import pytest

from distributed.tests.environments import ORIGINAL, _or_skip


@pytest.fixture(scope="session")
def original_python_with_codecs():
    """A Python with the original and all libraries that it compresses with."""
    requirements = [ORIGINAL, "lz4", "python-snappy", "zstandard"]
    return _or_skip("original-codecs", requirements, project=False)
