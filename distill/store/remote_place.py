"""Shards behind an fsspec URL, each downloaded once into a local cache and verified when it arrives.

The cache is $XDG_CACHE_HOME/redistill/signals/<digest of the URL>/ (~/.cache when it is not set); it may be deleted at
any time. What has no index a day after its name was made, a killed writer left: `sweep` deletes it.
"""

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.store import basis, shards
from distill.store.places import ABANDONED, LocalPlace, Writer, new_name, write_whole


class RemotePlace:
    """A folder of any file system that fsspec knows; InputError when it knows none by that URL."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            self.fs, self.base = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"teacher.signals {_masked(url)!r} cannot be opened ({error}): use a folder, or a URL fsspec knows"
            ) from error
        self.root = _masked(url.rstrip("/"))
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
        self.cache = LocalPlace(Path(home).expanduser() / "redistill" / "signals" / name)

    def names(self) -> list[str]:
        """Return the published shards, oldest first; cached ones that are gone here leave the cache."""
        self.fs.invalidate_cache()
        names = sorted(str(path).split("/")[-2] for path in self._glob("shard-*/index"))
        for cached in set(self.cache.names()) - set(names):
            self.cache.remove(cached)
        return names

    def folder(self, name: str, *, data: bool) -> Path:
        """Return a shard's folder in the cache, downloaded and verified as far as it was not."""
        kept = self.cache.path / name
        if not (kept / "index").is_file():
            with self._downloaded(name, "index") as arrived:
                shards.read_index(arrived, self.where(name))
                kept.mkdir(parents=True, exist_ok=True)
                os.replace(arrived / "index", kept / "index")
        if data and not (kept / "data").is_file():
            with self._downloaded(name, "data") as arrived:
                shards.open_data(arrived, shards.read_index(kept), self.where(name), again=True)
                os.replace(arrived / "data", kept / "data")
        return kept

    def publish(self, write: Writer) -> None:
        """Write into the cache, upload the data and then the index."""
        partial, name = self._new_folder(), new_name()
        try:
            write(partial)
            try:
                with _os_errors():
                    self.fs.makedirs(self._path(name), exist_ok=True)
                    self.fs.put_file(str(partial / "data"), self._path(name, "data"))
                    self._upload(partial / "index", self._path(name, "index"))
            except OSError:
                with suppress(Exception):  # the error that made it necessary is the one to tell; swept later
                    self._delete(name)
                raise
            with suppress(OSError):  # another process has downloaded the index meanwhile: the cache is its
                os.rename(partial, self.cache.path / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Delete the index first: from then on there is no such shard."""
        self._delete(name)
        self.cache.remove(name)

    def bases(self) -> dict[str, int]:
        """Return the published bases and their bytes."""
        return {str(path).rsplit("/", 1)[-1]: self.fs.size(path) for path in sorted(self._glob("basis-*"))}

    def read_basis(self, name: str, *, cached: bool = True) -> bytes:
        """Return a basis file's content, by way of the cache if that has it whole."""
        kept = self.cache.path / name
        if cached and kept.is_file() and basis.is_whole(name, content := kept.read_bytes()):
            return content
        content = bytes(self.fs.cat_file(self._path(name)))
        if basis.is_whole(name, content):
            self.cache.path.mkdir(parents=True, exist_ok=True)
            write_whole(kept, content)
        return content

    def publish_basis(self, name: str, content: bytes) -> None:
        """Upload under another name, then move."""
        if not self.fs.exists(self._path(name)):
            self.fs.makedirs(self.base, exist_ok=True)
            self.cache.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.cache.path / name, content)
            self._upload(self.cache.path / name, self._path(name))

    def claims(self) -> dict[str, bytes]:
        """Return all claims by name."""
        found = {}
        with _os_errors():
            self.fs.invalidate_cache()
            for path in self._glob("claim-*"):
                with suppress(FileNotFoundError):  # dropped since it was listed
                    found[str(path).rsplit("/", 1)[-1]] = bytes(self.fs.cat_file(path))
        return found

    def write_claim(self, name: str, content: bytes) -> None:
        """Upload in one piece: object stores show the old one or the new one."""
        with _os_errors():
            self.fs.makedirs(self.base, exist_ok=True)
            self.fs.pipe_file(self._path(name), content)

    def drop_claim(self, name: str) -> None:
        """Remove a claim."""
        with _os_errors(), suppress(FileNotFoundError):
            self.fs.rm(self._path(name))

    def where(self, name: str) -> str:
        """Return the URL."""
        return f"{self.root}/{name}"

    def mend(self, name: str) -> bool:
        """Delete the cached copy: the next reader downloads it again."""
        self.cache.remove(name)
        return True

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Give a fresh copy of a shard, not the cached one."""
        with self._downloaded(name, "index", "data") as arrived:
            yield arrived

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing holds others off here: two compactions at once keep records twice, until the next."""
        yield

    def sweep(self) -> None:
        """Delete what was begun more than a day ago and has no index: names hold the time they were made at."""
        self.cache.sweep()
        self.fs.invalidate_cache()
        published = set(self.names())
        found = [str(path).rstrip("/").rsplit("/", 1)[-1] for path in self._glob("shard-*")]
        found += [str(path).rsplit("/", 1)[-1] for path in self._glob(".partial-*")]
        for name in set(found) - published:
            if time.time() - int(name.split("-")[1]) / 1e9 > ABANDONED:
                with suppress(FileNotFoundError):
                    self.fs.rm(self._path(name), recursive=True)

    def _path(self, *parts: str) -> str:
        return "/".join((self.base.rstrip("/"), *parts))

    def _glob(self, pattern: str) -> list[Any]:
        try:
            return list(self.fs.glob(self._path(pattern)))
        except FileNotFoundError:
            return []

    def _upload(self, file: Path, path: str) -> None:
        partial = self._path(f".partial-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}")
        self.fs.put_file(str(file), partial)
        self.fs.mv(partial, path)

    def _delete(self, name: str) -> None:
        for path in (self._path(name, "index"), self._path(name)):
            with suppress(FileNotFoundError):
                self.fs.rm(path, recursive=True)

    def _new_folder(self) -> Path:
        self.cache.path.mkdir(parents=True, exist_ok=True)
        self.cache.sweep()
        partial = self.cache.path / f".partial-{uuid.uuid4().hex}"
        partial.mkdir()
        return partial

    @contextmanager
    def _downloaded(self, name: str, *files: str) -> Iterator[Path]:
        """Give a folder with these files of a shard; FileNotFoundError when the shard is gone."""
        arrived = self._new_folder()
        try:
            for file in files:
                self._download(name, file, arrived / file)
            yield arrived
        finally:
            shutil.rmtree(arrived, ignore_errors=True)

    def _download(self, name: str, file: str, target: Path) -> None:
        try:
            self.fs.get_file(self._path(name, file), str(target))
        except FileNotFoundError:
            self.fs.invalidate_cache()
            if file == "data" and self.fs.exists(self._path(name, "index")):
                raise shards.missing(self.where(name), file) from None
            raise


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise OSError for whatever the block raises: a file system has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _masked(url: str) -> str:
    """Return a URL without what may be a password."""
    return re.sub("//[^/@]*@", "//***@", url)
