"""Fixtures for the tests in this directory."""

from __future__ import annotations

from distributed.tests.environments import (
    bare_python,
    dask_python,
    original_python,
    yaml_python,
)

__all__ = ["bare_python", "dask_python", "original_python", "yaml_python"]
