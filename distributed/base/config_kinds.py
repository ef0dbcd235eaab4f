"""The kinds of configuration values: what is allowed, and how a value is converted.

A kind does not know keys; :mod:`distributed.base.config_keys` gives each key its kind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from distributed.base.quantities import parse_bytes, parse_timedelta

__all__ = [
    "Choice",
    "Compression",
    "Duration",
    "Flag",
    "Kind",
    "Names",
    "Path",
    "Secret",
    "SecretPath",
    "Size",
    "Text",
    "Whole",
]

#: Maximum of sizes and numbers, which have to fit into 64 bits with a sign.
_MAX = 2**63 - 1
#: Maximum duration, in seconds: ten years.  Timers of some event loops refuse longer ones.
_MAX_SECONDS = 10 * 365 * 86400


@dataclass(frozen=True)
class Kind:
    """What a value must be.

    Parameters
    ----------
    null
        Whether the value may be null, which is read as None.
    """

    null: bool = False

    #: A valid value, as text.
    example: ClassVar[str] = ""
    #: Whether values are secrets, which must not be shown.
    secret: ClassVar[bool] = False

    @property
    def allowed(self) -> str:
        """What is allowed, for errors: "which is not …"."""
        return self._allowed() + (", or null" if self.null else "")

    def read(self, value: Any) -> Any:
        """Return the converted value.

        Raises
        ------
        ValueError, TypeError
            If it is not allowed; the error says why.
        """
        if value is None:
            if self.null:
                return None
            raise ValueError("null has no meaning for this key")
        return self._read(value)

    def _allowed(self) -> str:
        raise NotImplementedError

    def _read(self, value: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    example: ClassVar[str] = "true"

    def _allowed(self) -> str:
        return "true or false"

    def _read(self, value: Any) -> bool:
        if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
            return bool(value)
        raise ValueError("it is neither")


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number."""

    minimum: int = 0
    maximum: int = _MAX

    @property
    def example(self) -> str:  # type: ignore[override]
        return str(min(self.maximum, max(self.minimum, 1000)))

    def _allowed(self) -> str:
        if (self.minimum, self.maximum) == (0, _MAX):
            return "a whole number that is not negative"
        if self.maximum == _MAX:
            return f"a whole number from {self.minimum}"
        return f"a whole number from {self.minimum} to {self.maximum}"

    def _read(self, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("it is not a whole number")
        if not self.minimum <= value <= self.maximum:
            raise ValueError("it is out of range")
        return value


@dataclass(frozen=True)
class Size(Kind):
    """A number of bytes, such as "64MiB"."""

    minimum: int = 0
    #: Whether false is allowed, which is read as None.
    false: bool = False
    #: Whether the text "auto" is allowed, which is returned as it is.
    auto: bool = False

    example: ClassVar[str] = "64MiB"

    def _allowed(self) -> str:
        text = "a number of bytes" + (f" from {self.minimum}" if self.minimum else "")
        return text + (', or "auto"' if self.auto else "") + (", or false" if self.false else "")

    def _read(self, value: Any) -> int | str | None:
        if value is False and self.false:
            return None
        if value == "auto" and self.auto:
            return "auto"
        size = parse_bytes(value)
        # `parse_bytes` drops fractions: -0.5 would be 0, which may mean "unlimited".
        if size < 0 or str(value).strip().startswith("-"):
            raise ValueError("it is negative")
        if not self.minimum <= size <= _MAX:
            raise ValueError("it is out of range")
        return size


@dataclass(frozen=True)
class Duration(Kind):
    """A duration such as "30s"."""

    #: Minimum and maximum, in seconds.
    minimum: float = 0
    maximum: float = _MAX_SECONDS

    @property
    def example(self) -> str:  # type: ignore[override]
        return "30s" if self.maximum >= 30 else f"{self.maximum:g}s"

    def _allowed(self) -> str:
        text = "a duration" + (f" of at least {self.minimum:g} s" if self.minimum else "")
        return text if self.maximum == _MAX_SECONDS else f"{text} of at most {self.maximum:g} s"

    def _read(self, value: Any) -> float:
        seconds = parse_timedelta(value)
        if seconds < self.minimum:
            raise ValueError(f"it is shorter than {self.minimum:g} s")
        if seconds > self.maximum:
            raise ValueError(f"it is longer than {self.maximum:g} s")
        return float(seconds) if not isinstance(seconds, int) else seconds


@dataclass(frozen=True)
class Text(Kind):
    """Text that is not empty."""

    example: ClassVar[str] = "text"

    def _allowed(self) -> str:
        return "text"

    def _read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("it is not text")
        if not value.strip():
            raise ValueError("it is empty")
        return value


@dataclass(frozen=True)
class Secret(Text):
    """A secret, as text."""

    secret: ClassVar[bool] = True

    def _allowed(self) -> str:
        return "text, and not empty"


@dataclass(frozen=True)
class Path(Text):
    """The path of a file or directory, or text in its place."""

    example: ClassVar[str] = "/path"

    def _allowed(self) -> str:
        return "a path"

    def _read(self, value: Any) -> str:
        if isinstance(value, os.PathLike):
            value = os.fsdecode(value)
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a path has no null characters")
        return super()._read(value)


@dataclass(frozen=True)
class Names(Kind):
    """A list of names."""

    example: ClassVar[str] = "[name]"

    def _allowed(self) -> str:
        return "a list of names"

    def _read(self, value: Any) -> list[str]:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
            raise ValueError("it is not a list")
        names = list(value)
        for name in names:
            if not isinstance(name, str) or not name:
                raise ValueError(f"{name!r} is not a name")
        return names


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few values."""

    values: tuple[Any, ...] = ()

    @property
    def example(self) -> str:  # type: ignore[override]
        return str(self.values[-1])

    def _allowed(self) -> str:
        return " or ".join(map(str, self.values))

    def _read(self, value: Any) -> Any:
        if isinstance(value, bool) or value not in self.values:
            raise ValueError("it is neither")
        return value


@dataclass(frozen=True)
class SecretPath(Path):
    """The path of a file with a secret, or the secret itself as text."""

    secret: ClassVar[bool] = True


@dataclass(frozen=True)
class Compression(Text):
    """The name of a compression, or false."""

    example: ClassVar[str] = "auto"

    def _allowed(self) -> str:
        return "the name of a compression, or false"

    def _read(self, value: Any) -> Any:
        return False if value is False else super()._read(value)
