"""One shard of the signal store: a folder of two files, each under a checksum, never changed once it is published.

data    the sections of the answer tokens (distill/store/encodings.py), each at a multiple of 64 bytes
index   preamble   magic, format version, bytes of the header, SHA-256 of all of this file but itself
        header     JSON: format, parameters, where the sections lie, size and SHA-256 of `data`
        table      per record: key, when it was bought, tokens of the prompt, where its answer's tokens lie, error
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure
from distill.store.encodings import Encoded

VERSION = 2  # 1 was index.npy and topk.npy, without checksums
INDEX = np.dtype(
    [("key", "S32"), ("bought", "<f8"), ("start", "<i8"), ("prompt_tokens", "<i4"), ("tokens", "<i4"), ("error", "<f4")]
)  # bought: seconds since 1970; error: relative, of the states that were kept against those that came

_MAGIC = b"RDSIGNAL"
_PREAMBLE = np.dtype([("magic", "S8"), ("version", "<u4"), ("header_bytes", "<u4"), ("sha256", "V32")])
_ALIGNED = 64  # bytes
_PIECE = 2**24  # bytes hashed at once
_verified: set[tuple[str, int, int, int]] = set()  # data files whose checksum was right, by path and inode's state


class Damaged(Failure):
    """A file of the store is not what was written."""

    def __init__(self, path: str, reason: str, remedy: str) -> None:
        super().__init__(path, reason, remedy)
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"{self.path!r} of the signal store is not whole ({self.reason}): {self.remedy}"


@dataclass(frozen=True)
class Shard:
    """What a shard's index says."""

    format: str
    parameters: dict[str, Any]
    sections: dict[str, tuple[str, list[int], int]]  # dtype, shape, offset in `data`
    data_bytes: int
    data_sha256: str
    index_bytes: int
    table: NDArray[Any]  # of INDEX


def write(folder: Path, table: NDArray[Any], encoded: Encoded) -> None:
    """Write and sync the two files of a shard in an empty folder; raises OSError."""
    sections: dict[str, tuple[str, list[int], int]] = {}
    digest = hashlib.sha256()
    with (folder / "data").open("xb") as file:
        for name, array in encoded.sections.items():
            gap = bytes(-file.tell() % _ALIGNED)
            sections[name] = (_dtype_text(array.dtype), list(array.shape), file.tell() + len(gap))
            for piece in (gap, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data):
                file.write(piece)
                digest.update(piece)
        size = file.tell()
        _sync(file)
    header = json.dumps(
        {
            "format": encoded.format,
            "parameters": encoded.parameters,
            "sections": sections,
            "data_bytes": size,
            "data_sha256": digest.hexdigest(),
        }
    ).encode()
    with (folder / "index").open("xb") as file:
        rest = header + table.tobytes()
        file.write(_preamble(len(header), rest) + rest)
        _sync(file)
    sync_folder(folder)


def read_index(folder: Path, where: str = "") -> Shard:
    """Return what a shard's index says, its checksum verified.

    `where` names the folder in errors (default: itself). Raises Damaged, or FileNotFoundError when there is no
    such shard (any more).
    """
    path, name = folder / "index", f"{where or folder}/index"
    try:
        content = path.read_bytes()
    except NotADirectoryError:
        raise Damaged(f"{where or folder}", "it is no folder", "no shard is called that: move it elsewhere") from None
    except FileNotFoundError:
        if folder.is_symlink() and not folder.exists():  # it stays listed, and would be looked for again and again
            raise Damaged(f"{where or folder}", "a link to nothing", "mend or delete the link") from None
        if not folder.is_dir():
            raise
        if (folder / "index.npy").exists():
            raise Damaged(f"{where or folder}", "of the first format, without checksums", _remedy(name)) from None
        raise missing(where or str(folder), "index") from None
    if len(content) < _PREAMBLE.itemsize or content[:8] != _MAGIC:
        raise Damaged(name, "it does not begin as an index of signals does", _remedy(name))
    preamble = np.frombuffer(content, _PREAMBLE, 1)[0]
    if preamble["version"] != VERSION:
        raise Damaged(
            name,
            f"its format version is {preamble['version']}, and this redistill reads {VERSION}",
            "upgrade redistill if a later one wrote it; else " + _remedy(name),
        )
    rest = content[_PREAMBLE.itemsize :]
    if content[: _PREAMBLE.itemsize] != _preamble(int(preamble["header_bytes"]), rest):
        raise Damaged(name, "its checksum is wrong", _remedy(name))
    header = json.loads(rest[: preamble["header_bytes"]])
    table = np.frombuffer(rest, INDEX, offset=int(preamble["header_bytes"]))
    return Shard(**header, index_bytes=len(content), table=table)


def open_data(folder: Path, shard: Shard, where: str = "", *, again: bool = False) -> Encoded:
    """Return a shard's tokens as views of its mapped file.

    The file's size is checked each time, its checksum the first time that this process reads it, or `again`.
    Raises Damaged, naming the file, or FileNotFoundError when the shard is gone.
    """
    path, name = folder / "data", f"{where or folder}/data"
    try:
        mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError:
        if not (folder / "index").is_file():
            raise
        raise missing(where or str(folder), "data") from None
    except ValueError:  # nothing can be mapped of an empty file
        mapped = np.empty(0, np.uint8)
    if len(mapped) != shard.data_bytes:
        raise Damaged(name, f"{len(mapped)} bytes where there were {shard.data_bytes}", _remedy(name))
    state = path.stat()
    seen = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
    if again or seen not in _verified:
        if _sha256(mapped) != shard.data_sha256:
            raise Damaged(name, "its checksum is wrong", _remedy(name))
        _verified.add(seen)
    sections = {}
    for part, (dtype, shape, offset) in shard.sections.items():
        kind = np.dtype(_dtype(dtype))
        size = int(np.prod(shape)) * kind.itemsize
        sections[part] = mapped[offset : offset + size].view(kind).reshape(shape)
    return Encoded(shard.format, shard.parameters, sections)


def missing(where: str, file: str) -> Damaged:
    """Return the error of a shard that is there, but for one of its files."""
    return Damaged(f"{where}/{file}", "it is missing", _remedy(f"{where}/{file}"))


def sync_folder(folder: Path) -> None:
    """Make the folder's entries outlast a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _preamble(header_bytes: int, rest: bytes) -> bytes:
    first = np.array([(_MAGIC, VERSION, header_bytes, bytes(32))], _PREAMBLE)
    first["sha256"] = hashlib.sha256(first.tobytes() + rest).digest()
    return first.tobytes()


def _sha256(mapped: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256()
    pieces: Iterable[int] = range(0, len(mapped), _PIECE)
    for at in pieces:
        digest.update(mapped[at : at + _PIECE].data)
    return digest.hexdigest()


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _dtype_text(dtype: np.dtype[Any]) -> str:
    return json.dumps(dtype.descr) if dtype.names else dtype.str


def _dtype(text: str) -> Any:
    return [tuple(field) for field in json.loads(text)] if text.startswith("[") else text


def _remedy(name: str) -> str:
    return f"delete the folder {name.rsplit('/', 1)[0]!r}; what was in it is bought again when it is needed"
