"""Scratch directories: made when first used, removed when their process has ended."""
