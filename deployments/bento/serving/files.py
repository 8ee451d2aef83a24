"""SHA-256 of the files of a checkpoint: written into model.json when a Bento is built, and checked before it serves."""

import hashlib
from collections.abc import Mapping
from pathlib import Path


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 (hex) of each file in a folder, by its path in it."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check(folder: Path, expected: Mapping[str, str]) -> None:
    """Raise RuntimeError unless a folder holds just these files with just this content."""
    there = digests(folder)
    if there == expected:
        return
    wrong = [
        f"{name} has other content" for name in sorted(expected) if name in there and there[name] != expected[name]
    ]
    wrong += [f"{name} is missing" for name in sorted(expected.keys() - there.keys())]
    wrong += [f"{name} is none of it" for name in sorted(there.keys() - expected.keys())]
    raise RuntimeError(
        f"{folder.name}/ is not what was packed ({', '.join(wrong[:3])}): it is not served; build the Bento again"
    )
