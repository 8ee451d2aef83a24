"""Names of columns, categories and values as a person reads them: not too long, and no two of them alike."""

from collections.abc import Sequence

MAX_CHARS = 60


def shortened(name: str, chars: int = MAX_CHARS) -> str:
    """Return a name of at most so many characters, an ellipsis where it was cut."""
    return name if len(name) <= chars else f"{name[: chars - 1]}\u2026"


def unique(names: Sequence[str]) -> list[str]:
    """Return the names with a number after each that was there before; all names are distinct then."""
    given, taken = set(names), set[str]()
    own = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken or (number > 1 and candidate in given):
            number += 1
            candidate = f"{name} ({number})"
        taken.add(candidate)
        own.append(candidate)
    return own
