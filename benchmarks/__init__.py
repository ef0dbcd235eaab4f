"""Benchmarks of this project, the original, other RPC libraries and the limits of the machine.

``make bench`` runs them, and ``docs/explanation/performance.rst`` describes what is measured and
how.  The modules, from the command line down: `__main__` → `rounds` (the order of measurements) →
`cases` (what is measured) and `lineup` (the contestants) → `processes` → the programs in
`contestants`.
Each program runs in an environment of its own and imports nothing else from here.  The
measurements are evaluated by `results` and shown by `targets`, `report` and `plots`.
"""
