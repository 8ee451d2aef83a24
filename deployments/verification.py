"""Is a checkpoint still the one that was registered? Every file by SHA-256, and the safetensors headers; no torch.

    tags = hashes(folder)                   # at registration: sha256, tokenizer_sha256, files
    verify_checkpoint(folder, tags)         # before it serves: Failure names file, expected and found

Hashes are read from the bytes each time: nothing is remembered from one call to the next.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from deployments.errors import Failure, InputError, Spoiled

TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "sentencepiece*", "spiece*", "chat_template*",
)  # fmt: skip
HEADER_BYTES = 100_000_000  # longer safetensors headers are not read by the library either


def hashes(folder: Path) -> dict[str, str]:
    """Returns the registry tags that say what a checkpoint folder holds.

    `sha256` of names and contents of its files (as distill.checkpoint.digest), `tokenizer_sha256` of those of the
    tokenizer, `files` as JSON: path -> SHA-256 of each, subfolders included. Hidden files do not count. Raises
    Failure for a safetensors file that is cut short.
    """
    if broken := [problem for name in _files(folder) if (problem := _broken(folder, name))]:
        raise Failure(f"checkpoint {str(folder)!r}: {'; '.join(broken)}; export it again")
    found = file_hashes(folder)
    return {
        "sha256": _together({name: value for name, value in found.items() if "/" not in name}),
        "tokenizer_sha256": _together({name: value for name, value in found.items() if is_tokenizer(name)}),
        "files": json.dumps(found),
    }


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns path within the folder -> SHA-256 (hex), by path; hidden files do not count."""
    return {name: file_hash(folder / name) for name in _files(folder)}


def file_hash(path: Path) -> str:
    """Returns the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_checkpoint(folder: Path, expected: Mapping[str, str]) -> None:
    """Raises Spoiled, naming each file with what was expected and found, unless a checkpoint is what was registered.

    `expected` are the tags of its version (`hashes`); one from before `files` was written has `sha256` alone.
    """
    if wrong := differences(folder, expected):
        raise Spoiled(
            f"checkpoint {str(folder)!r} is not what was registered: {'; '.join(wrong)}. Nothing of it may serve: "
            "restore these files from a backup, or make the student anew (--again)"
        )


def differences(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Returns what differs between a checkpoint and the tags of its version, a sentence each; [] for nothing.

    Raises InputError when the tags hold no hash to compare with.
    """
    if not folder.is_dir():
        return [f"the folder {str(folder)!r} is gone"]
    if "files" not in expected:
        return _of_the_whole(folder, expected)
    registered = _registered(expected)
    broken = {name: problem for name in _files(folder) if (problem := _broken(folder, name))}
    found = {name: "" if name in broken else file_hash(folder / name) for name in _files(folder)}
    wrong = []
    for name in sorted({*registered, *found}):
        what = _what(name)
        if name not in found:
            wrong.append(f"{what} is missing, registered with SHA-256 {registered[name]}")
        elif name not in registered:
            wrong.append(f"{what} was not registered, found with SHA-256 {found[name] or 'none, it is broken'}")
        elif name in broken:
            wrong.append(broken[name])
        elif found[name] != registered[name]:
            wrong.append(f"{what} has SHA-256 {found[name]}, registered was {registered[name]}")
    return wrong


def is_tokenizer(name: str) -> bool:
    """Says whether a file of a checkpoint belongs to its tokenizer or its prompt format."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in TOKENIZER)


def _of_the_whole(folder: Path, expected: Mapping[str, str]) -> list[str]:
    if "sha256" not in expected:
        raise InputError(
            f"checkpoint {str(folder)!r} cannot be verified: its version has no tag sha256, so it was not registered "
            "by a retrain; register it by one"
        )
    if broken := [problem for name in _files(folder) if (problem := _broken(folder, name))]:
        return broken
    found = _together({name: value for name, value in file_hashes(folder).items() if "/" not in name})
    if found == expected["sha256"]:
        return []
    return [f"its files together have SHA-256 {found}, registered was {expected['sha256']}"]


def _registered(expected: Mapping[str, str]) -> dict[str, str]:
    try:
        files = json.loads(expected["files"])
        return {str(name): str(value) for name, value in files.items()}
    except (ValueError, AttributeError) as error:
        raise Failure(f"the tag files of the version is damaged ({error}): register the student anew") from error


def _what(name: str) -> str:
    if is_tokenizer(name):
        return f"the tokenizer is a foreign one: {name}"
    return f"weights {name}" if name.endswith(".safetensors") else name


def _files(folder: Path) -> Iterator[str]:
    """Paths of the files, by path; a link to a file counts as what it leads to."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _together(of: Mapping[str, str]) -> str:
    total = hashlib.sha256()
    for name, value in sorted(of.items()):
        total.update(name.encode() + b"\0" + bytes.fromhex(value))
    return total.hexdigest()


def _broken(folder: Path, name: str) -> str | None:
    """What is wrong with a safetensors file, as far as its size and its header tell; None for nothing.

    (Format: 8 bytes with the length of the header, little-endian; the header, JSON; the tensors.)
    """
    if not name.endswith(".safetensors"):
        return None
    path = folder / name
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > HEADER_BYTES:
            return f"weights {name} is no safetensors file: it has {size} bytes, and a header of {length}"
        if size < 8 + length:
            return f"weights {name} is truncated: its header alone has {8 + length} bytes, found are {size}"
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for key, tensor in header.items() if key != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            return f"weights {name} is no safetensors file: its header cannot be read ({type(error).__name__})"
    if size == expected:
        return None
    cut = "truncated" if size < expected else "longer than it was written"
    return f"weights {name} is {cut}: its header tells of {expected} bytes, found are {size}"
