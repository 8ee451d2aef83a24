"""Text that people give for the registry: a reason, a name, a note."""


def fault(text: str) -> str | None:
    """Return why no registry keeps such a text, or None."""
    if "\0" in text:
        return "holds a null byte"
    return "is not UTF-8" if any("\ud800" <= each <= "\udfff" for each in text) else None
