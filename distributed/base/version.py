"""The version of this package, without importing anything."""

__version__ = "0.2.0"
