"""Find words that make readers of technical English stop, in comments, strings, docs and test names.

Usage: ``python scripts/plain_english.py [FILE ...]``; by default all files that git tracks.  Prints
one line for each finding and exits with 1 if there is any.  The check is small on purpose: it finds
single words and fixed phrases, and cannot tell whether a sentence is clear.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

#: What is wrong → the words, as a regular expression; the first group that matches is shown.
RULES = {
    "name the actor: the peer, the caller, the reader, the task": (
        r"whoever|whoso|whosoever|nobody|somebody|anybody|no one|someone else|everybody"
        r"|who|whom|he|him|his|she|her"
    ),
    "write 'is not a', 'does not' or 'has no'": (
        r"(?:is|are|was|were|be) no"
        r"|knows? (?:nothing|neither|no)|takes? no|tells? nothing|needs? no|says? nothing"
    ),
    "say Maximum, Minimum or Number of, with the unit": r"so many|so much of|that many|that much",
    "use the field's own word": (
        r"anew|amid|amidst|ado|in vain|takes? note|took note|(?:go|goes|going|went|gone) on"
        r"|comes? to li(?:fe|ve)|comes? round|came round|gets? round|bothers?|bothered|heeds?|heeded"
        r"|lest|whilst|amongst|hitherto|thereof|thereupon|therein|whereof|whereupon|wherein|hence"
        r"|thence|whence|forthwith|albeit|sees? to it|seen to it|for want of|as it were|ought to"
        r"|shall|in the midst|at a loss|onlookers?|mended|to mend|mends?|foreseen|foresees?"
    ),
}

#: Phrases that are right although they contain one of those words.
ALLOWED = re.compile(
    r"\b(?:(?:users|people|readers|developers|those) who"
    r"|there (?:is|are|was|were|be) no|(?:is|are|was|were|be) no (?:longer|more than|less than))\b",
    re.IGNORECASE,
)

#: Files that are quoted from elsewhere, or that list the words themselves.
EXCLUDED = {
    "LICENSE",
    "distributed/tests/data/foundations.rst",
    "docs/foundations.rst",
    "scripts/plain_english.py",
}

_PATTERNS = [
    (advice, re.compile(rf"\b(?:{words})\b", re.IGNORECASE)) for advice, words in RULES.items()
]


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line numbers and texts of a file that a person reads as English."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(source.splitlines(), start=1)
        return
    previous = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line
        elif previous in ("def", "class") and token.type == tokenize.NAME:
            yield token.start[0], token.string.replace("_", " ")
        previous = token.string


def findings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, word and advice for each word that is to be replaced."""
    for number, text in texts_of(path):
        for advice, pattern in _PATTERNS:
            for match in pattern.finditer(ALLOWED.sub(" ", text)):
                yield number, match[0], advice


def tracked_files() -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "*.py", "*.rst", "*.md", "*.cfg", "*.toml", "Makefile"],
        check=True,
        capture_output=True,
        text=True,
    )
    return listing.stdout.split()


def main(arguments: list[str]) -> int:
    found = 0
    for name in arguments or tracked_files():
        if name in EXCLUDED or not Path(name).exists():
            continue
        for number, word, advice in findings(Path(name)):
            print(f"{name}:{number}: {word!r}: {advice}")
            found += 1
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
