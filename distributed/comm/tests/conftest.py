"""Fixtures for the tests in this directory."""

from __future__ import annotations

from distributed.tests.environments import original_python

__all__ = ["original_python"]
