"""Find words that slow down readers of technical English, and suggest others.

Usage: ``python scripts/plain_english.py [FILE ...]``; by default, all files that git tracks.
Checks comments, strings and test names of Python files, and the whole text of other files.  Text
between backticks is code and is skipped.  Prints one line per finding; the exit code is 1 if there
is any.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ACTOR = "name the actor: the peer, the caller, the reader, the task, the server"
#: Suggestion for each group of words, which are regular expressions.
SUGGESTIONS = {
    r"who|whom|whoever|whomever|whoso|whosoever": ACTOR,
    r"he|him|his|she|her|hers": f"{ACTOR}; or 'it', 'its'",
    r"nobody|no one": "'no caller', 'no task', 'no other process', or the passive",
    r"somebody|anybody|everybody|someone else": "'another process', 'any peer', 'every caller'",
    r"(?:is|are|was|were|be) no": "'is not a', 'are not', or 'has no'",
    r"knows? (?:nothing|neither|no)": "'does not know', 'does not depend on', 'is independent of'",
    r"(?:takes?|needs?) no more": "'does not accept further', 'does not need further'",
    r"tells? nothing|says? nothing": "'does not tell', 'does not say', or 'sends no'",
    r"(?:so|that) (?:many|much)": "'Maximum number of', 'Seconds before', with the unit",
    r"anew": "'again', or a verb with 're-'",
    r"amid|amidst|in the midst": "'during', 'inside', 'between'",
    r"ado|for want of|at a loss": "'without'",
    r"in vain": "'without success', 'fails'",
    r"(?:takes?|took|taking) note": "'records', 'stores'",
    r"(?:go|goes|going|went|gone) on(?! (?:the|an?|top|disk|port)\b)": (
        "'continues', 'resumes', 'happens'"
    ),
    r"(?:comes?|came) to li(?:fe|ve)": "'starts', 'is created'",
    r"(?:comes?|came|gets?|got) round": "'runs again', 'reaches'",
    r"bothers?|bothered|heeds?|heeded": "'handles', 'obeys', 'reacts to', 'checks'",
    r"lest": "'so that ... not'",
    r"whilst|amongst": "'while', 'among'",
    r"hitherto|betimes|anon": "'until now', 'early', 'soon'",
    r"there(?:of|upon|in)|where(?:of|upon|in)|hence|thence|whence|forthwith": (
        "'of it', 'then', 'in which', 'therefore', 'from which', 'at once'"
    ),
    r"albeit": "'although'",
    r"as it were": "nothing: leave it out",
    r"sees? to it|seen to it": "'ensures'",
    r"ought to|shall": "'should', 'must', 'will'",
    r"onlookers?": "'observers', 'other tasks'",
    r"mended|mends?": "'fixed', 'repaired'",
    r"foreseen|foresees?": "'expected', 'predicted'",
}
PATTERNS = [
    (re.compile(rf"\b(?:{words})\b".replace(" ", r"\s+"), re.IGNORECASE), suggestion)
    for words, suggestion in SUGGESTIONS.items()
]
#: Correct phrases that contain one of those words, and code in prose; neither is a finding.
ALLOWED = re.compile(
    r"``[^`]+``|`[^`\n]+`"
    r"|\b(?:users?|people|persons?|readers?|developers?|authors?|operators?|those|anyone)\s+who\b"
    r"|\bthere\s+(?:\w+\s+)?(?:is|are|was|were|be)\s+no\b|\b(?:is|are|was|were)\s+there\s+no\b"
    r"|\b(?:is|are|was|were|be)\s+no\s+(?:longer|more\s+than|less\s+than|later\s+than)\b",
    re.IGNORECASE,
)
#: Files quoted from elsewhere, and those that contain the words on purpose.
EXCLUDED = re.compile(
    r"LICENSE|(?:.*/)?foundations\.rst|(?:.*/)?tests/data/api\.md|examples/foundations/.*"
    r"|(?:.*/)?scripts/plain_english\.py|(?:.*/)?test_plain_english\.py"
)
TEXTS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a file that a person reads as English, each with its first line number."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield 1, source
        return
    previous, comment, first = "", "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT and line == first + comment.count("\n"):
            comment += token.string.lstrip("#:") + "\n"  # a sentence may continue on the next line
        elif token.type == tokenize.COMMENT:
            yield first, comment
            first, comment = line, token.string.lstrip("#:") + "\n"
        if token.type in TEXTS - {tokenize.COMMENT}:
            yield line, token.string
        elif previous == "def" and token.string.startswith("test_"):
            yield line, token.string.replace("_", " ")
        previous = token.string
    yield first, comment


def findings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, the word and a suggestion for each word to replace."""
    for first, text in texts_of(path):
        # Keep the newlines, which count lines.
        text = ALLOWED.sub(lambda match: "_" + "\n" * match[0].count("\n"), text)
        for pattern, suggestion in PATTERNS:
            for match in pattern.finditer(text):
                line = first + text.count("\n", 0, match.start())
                yield line, " ".join(match[0].split()), suggestion


def main(names: list[str]) -> int:
    """Print what is found in the named files, or in all tracked files; return the exit code."""
    if not names:
        kinds = ["*.py", "*.rst", "*.md", "*.cfg", "*.toml", "Makefile"]
        command = ["git", "ls-files", "-z", *kinds]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        names = [name for name in listing.split("\0") if Path(name).is_file()]
    found = sorted(
        (name, *finding)
        for name in names
        if not EXCLUDED.fullmatch(name)
        for finding in findings(Path(name))
    )
    for name, line, word, suggestion in found:
        print(f"{name}:{line}: {word!r} → {suggestion}")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
