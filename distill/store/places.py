"""Where the shards of a signal store lie: a local folder, or an fsspec URL with a local cache.

    ROOT/shard-<time>-<random>/     published: data, index
    ROOT/basis-<shape>-<SHA-256>    published: directions that shards may name (distill/store/basis.py)
    ROOT/claim-<who>                what a job is about to buy (distill/store/claims.py)
    ROOT/.partial-<random>/         being written, or left by a killed process (swept after a day)
    ROOT/.removed-<random>/         being deleted (swept as well)

In a local folder a shard comes and goes by one rename. Behind a URL its data is uploaded first and its index last,
under a temporary name that is then moved: without an index there is no shard, and an index is there whole or not.
A folder that is written by a URL (file://) is to be read by one, too.
"""

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from distill.errors import InputError
from distill.store import shards

ABANDONED = 24 * 3600  # seconds after which what is partial has no writer any more
Writer = Callable[[Path], None]  # fills an empty folder with a shard


class Place(Protocol):
    """What a store needs of where it lies; names are those of shards or bases."""

    root: str

    def names(self) -> list[str]:
        """Return the published shards, oldest first."""

    def folder(self, name: str, *, data: bool) -> Path:
        """Return the local folder that holds a shard's index and, if asked for, its data; FileNotFoundError if gone."""

    def publish(self, write: Writer) -> None:
        """Publish what `write` writes as a shard; after an OSError there is no part of it to be seen."""

    def remove(self, name: str) -> None:
        """Remove a shard; no error when it is gone."""

    def bases(self) -> dict[str, int]:
        """Return the published bases and their bytes."""

    def read_basis(self, name: str, *, cached: bool = True) -> bytes:
        """Return a basis file's content, past any cache if asked for; FileNotFoundError when there is none."""

    def publish_basis(self, name: str, content: bytes) -> None:
        """Publish a basis, unless it is there."""

    def claims(self) -> dict[str, bytes]:
        """Return all claims by name (distill/store/claims.py)."""

    def write_claim(self, name: str, content: bytes) -> None:
        """Write a claim, whole, in place of an earlier one of that name."""

    def drop_claim(self, name: str) -> None:
        """Remove a claim; no error when it is gone."""

    def where(self, name: str) -> str:
        """Return the path or URL of a shard or basis, for people."""

    def mend(self, name: str) -> bool:
        """Forget a copy of a shard that turned out damaged; False when it was no copy."""

    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """Give a shard's folder as it lies at the place itself, not as the cache has it."""

    def alone(self) -> AbstractContextManager[None]:
        """Hold off other compactions and evictions; InputError when one is under way."""

    def sweep(self) -> None:
        """Delete what killed processes left more than a day ago."""


def place_of(root: str | Path) -> Place:
    """Return the place that a path or an fsspec URL names; InputError when there is no such file system."""
    from distill.store.remote_place import RemotePlace

    return RemotePlace(str(root)) if "://" in str(root) else LocalPlace(Path(root))


class LocalPlace:
    """A folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.path, self.root = root, str(root)

    def names(self) -> list[str]:
        """Return the published shards, oldest first."""
        try:
            return sorted(name for name in os.listdir(self.path) if name.startswith("shard-"))
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise InputError(f"signal store {self.root!r} is a file: name a folder, which need not exist yet") from None

    def folder(self, name: str, *, data: bool) -> Path:
        """Return a shard's folder."""
        return self.path / name

    def publish(self, write: Writer) -> None:
        """Write beside, then rename."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.sweep()
        partial = self.path / f".partial-{uuid.uuid4().hex}"
        partial.mkdir()
        try:
            write(partial)
            os.rename(partial, self.path / new_name())
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shards.sync_folder(self.path)

    def remove(self, name: str) -> None:
        """Rename, so that no reader finds half of it, then delete; what is mapped stays readable."""
        removed = self.path / f".removed-{uuid.uuid4().hex}"
        try:
            os.rename(self.path / name, removed)
        except FileNotFoundError:
            return
        shutil.rmtree(removed)

    def bases(self) -> dict[str, int]:
        """Return the published bases and their bytes."""
        return {path.name: path.stat().st_size for path in sorted(self.path.glob("basis-*"))}

    def read_basis(self, name: str, *, cached: bool = True) -> bytes:
        """Return a basis file's content."""
        return (self.path / name).read_bytes()

    def publish_basis(self, name: str, content: bytes) -> None:
        """Write beside, then rename."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / name).exists():
            write_whole(self.path / name, content)

    def claims(self) -> dict[str, bytes]:
        """Return all claims by name."""
        found = {}
        for path in self.path.glob("claim-*"):
            with suppress(FileNotFoundError):  # dropped since it was listed
                found[path.name] = path.read_bytes()
        return found

    def write_claim(self, name: str, content: bytes) -> None:
        """Write beside, then rename."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / name, content)

    def drop_claim(self, name: str) -> None:
        """Remove a claim."""
        (self.path / name).unlink(missing_ok=True)

    def where(self, name: str) -> str:
        """Return the path."""
        return str(self.path / name)

    def mend(self, name: str) -> bool:
        """There is no other copy."""
        return False

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Give the shard's folder."""
        yield self.path / name

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold a lock that ends with the process."""
        if not self.path.is_dir():
            raise InputError(f"signal store {self.root!r}: there is no such folder")
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"signal store {self.root!r}: a compaction or eviction is under way: start again when it has ended"
                ) from None
            yield

    def sweep(self) -> None:
        """Delete partial and removed shards that nobody has touched for a day."""
        for pattern in (".partial-*", ".removed-*"):
            for path in self.path.glob(pattern):
                with suppress(FileNotFoundError):  # another process published or swept it
                    if time.time() - path.stat().st_mtime > ABANDONED:
                        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def new_name() -> str:
    """Return the name of a new shard: in the order of time, and no other's."""
    return f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"


def write_whole(path: Path, content: bytes) -> None:
    """Write and sync a file that is there whole or not at all."""
    partial = path.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    shards.sync_folder(path.parent)
