"""What this project costs, beside the original, its peers, and what the machine could do.

``make bench`` runs it; the page ``docs/performance.rst`` says what is measured and how. From the
command line down: `__main__` → `rounds` (who is measured when) → `cases` (what is measured, of
whom) and `lineup` (who there is) → `processes` → the programs in `contestants`, each of which runs
in an environment of its own and imports nothing of the rest. What the rounds gave goes through
`results` to `targets`, `report` and `plots`.
"""
