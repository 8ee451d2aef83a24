"""Writes a file so that readers see the old one or the new one, never half of it."""

import os
import uuid
from pathlib import Path

from monitoring.errors import Failure


def write_atomically(path: Path, content: bytes, *, beside: Path | None = None) -> None:
    """Write a file beside `path` and move it there, making the folder where needed.

    With `beside` it is written next to that path instead, on the same file system: a program that watches a folder
    then sees a whole file come in. Raises Failure, with nothing changed, when it cannot be written.
    """
    made = (beside or path).with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with made.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, path)
        finally:
            made.unlink(missing_ok=True)  # there only when something above failed
    except OSError as error:
        raise Failure(
            f"cannot write {path}: {error.strerror}; free space or fix its permissions, and try again"
        ) from error
