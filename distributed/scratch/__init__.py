"""Scratch directories: created at first use, removed after their process has ended."""
