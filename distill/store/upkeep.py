"""What lies in a signal store, whether it is whole, and how it is kept small: stats, verify, compact, evict.

Compaction and eviction publish new shards before they remove old ones: a process killed between leaves records twice,
never not at all, and a reader that has an old shard mapped reads on.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure, InputError
from distill.store import basis, encodings, shards
from distill.store.places import Place
from distill.store.shards import Damaged, Shard

Progress = Callable[[int, int], None]  # (shards done, shards in all)

DAY = 24 * 3600.0  # seconds
TARGET = 256 * 2**20  # bytes of a compacted shard
_PADDING = 512  # bytes by which the sections of a rewritten shard are aligned, at most


@dataclass
class Kind:
    """What a store holds of one format; bytes are those of the answer tokens, without the index."""

    shards: int = 0
    records: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    bytes: int = 0
    error_sum: float = 0.0  # of relative errors, weighted by tokens
    error_max: float = 0.0
    oldest: float = float("inf")  # seconds since 1970
    newest: float = 0.0
    kept_as: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # tokens by how they are kept

    def add(self, shard: Shard) -> None:
        """Count a shard."""
        table, tokens = shard.table, int(shard.table["tokens"].sum())
        self.shards += 1
        self.records += len(table)
        self.prompt_tokens += int(table["prompt_tokens"].sum())
        self.answer_tokens += tokens
        self.bytes += shard.data_bytes
        self.error_sum += float((table["error"].astype(np.float64) * table["tokens"]).sum())
        self.error_max = max(self.error_max, float(table["error"].max()))
        self.oldest = min(self.oldest, float(table["bought"].min()))
        self.newest = max(self.newest, float(table["bought"].max()))
        self.kept_as[str(shard.parameters.get("kept", "topk"))] += tokens

    def report(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "shards": self.shards,
            "records": self.records,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            "bytes": self.bytes,
            "bytes_per_token": self.bytes / self.answer_tokens,
            "relative_error": {"mean": self.error_sum / self.answer_tokens, "max": self.error_max},
            "bought": {"first": self.oldest, "last": self.newest},
            "tokens_kept_as": dict(self.kept_as),
        }


def stats(place: Place) -> dict[str, Any]:
    """Return what a store holds, by format; reads the indexes only."""
    kinds: dict[str, Kind] = defaultdict(Kind)
    size, count = 0, 0
    for _, shard in _indexes(place):
        kinds[shard.format].add(shard)
        size += shard_bytes(shard)
        count += 1
    bases = place.bases()
    return {
        "root": place.root,
        "shards": count,
        "bytes": size + sum(bases.values()),
        "bases": {"count": len(bases), "bytes": sum(bases.values())},
        "formats": {name: kind.report() for name, kind in sorted(kinds.items())},
    }


def verify(place: Place, progress: Progress) -> tuple[int, list[Damaged]]:
    """Read every byte of a store, past any cache, and return (shards, what is damaged, each by its file's name)."""
    damaged: list[Damaged] = []
    names, bases = place.names(), place.bases()
    for name in bases:
        try:
            basis.read(name, place.read_basis(name, cached=False), place.where(name))
        except Failure as error:
            damaged.append(Damaged(place.where(name), str(error), "delete it and the shards that need it"))
    for done, name in enumerate(names, 1):
        try:
            with place.fetch(name) as folder:
                shard = shards.read_index(folder, place.where(name))
                shards.open_data(folder, shard, place.where(name), again=True)
            if (needed := shard.parameters.get("basis")) and needed not in bases:
                damaged.append(
                    Damaged(
                        place.where(needed), "it is missing", f"delete the folder {place.where(name)!r}, which needs it"
                    )
                )
        except Damaged as error:
            damaged.append(error)
        except FileNotFoundError:  # rewritten or evicted since it was listed
            pass
        progress(done, len(names))
    return len(names), damaged


def compact(place: Place, progress: Progress, target: int = TARGET) -> dict[str, int]:
    """Rewrite small shards of one kind as shards of about `target` bytes; records that lie there twice are kept once.

    Raises InputError when another compaction or eviction is under way.
    """
    with place.alone():
        place.sweep()
        before = list(_indexes(place))
        groups = [group for kind in _by_kind(before) for group in _lots(kind, target) if len(group) > 1]
        done, total, dropped = 0, sum(map(len, groups)), 0
        for group in groups:
            tables = [shard.table for _, shard in group]
            first = np.zeros(sum(map(len, tables)), np.bool_)
            first[np.unique(np.concatenate(tables)["key"], return_index=True)[1]] = True
            _rewrite(place, group, np.split(first, np.cumsum([len(table) for table in tables])[:-1]))
            done, dropped = done + len(group), dropped + int((~first).sum())
            progress(done, total)
        return {"shards_before": len(before), "shards_after": len(before) - total + len(groups), "duplicates": dropped}


def evict(
    place: Place,
    progress: Progress,
    *,
    max_age: float | None = None,
    max_bytes: int | None = None,
    now: float | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Remove records bought more than `max_age` seconds ago, then the least recently bought until `max_bytes` hold.

    Returns what went, by shard. Raises InputError without a limit, or when another compaction or eviction is under way.
    """
    if max_age is None and max_bytes is None:
        raise InputError("nothing to evict by: give a largest age, a largest size, or both")
    with place.alone():
        place.sweep()
        found = list(_indexes(place))
        since = -np.inf if max_age is None else (now or time.time()) - max_age
        kept = _kept(found, sum(place.bases().values()), since, max_bytes)
        went = []
        for done, ((name, shard), keep) in enumerate(zip(found, kept, strict=True), 1):
            if not keep.all():
                went.append(_gone(name, shard, ~keep))
                if not dry_run:
                    _rewrite(place, [(name, shard)], [keep])
            progress(done, len(found))
        return {
            "root": place.root,
            "dry_run": dry_run,
            "evicted": {name: sum(each[name] for each in went) for name in ("records", "tokens", "bytes")},
            "kept": {
                "records": int(sum(keep.sum() for keep in kept)),
                "bytes": stats(place)["bytes"] - (sum(each["bytes"] for each in went) if dry_run else 0),
            },
            "by_shard": went,
        }


def shard_bytes(shard: Shard) -> int:
    """Return the bytes of a shard's two files."""
    return shard.data_bytes + shard.index_bytes


def _indexes(place: Place) -> Iterable[tuple[str, Shard]]:
    for name in place.names():
        try:
            yield name, shards.read_index(place.folder(name, data=False))
        except FileNotFoundError:  # rewritten or evicted since it was listed
            continue


def _by_kind(found: Iterable[tuple[str, Shard]]) -> list[list[tuple[str, Shard]]]:
    kinds: dict[Any, list[tuple[str, Shard]]] = defaultdict(list)
    for name, shard in found:
        kinds[encodings.same_kind(shard.format, shard.parameters)].append((name, shard))
    return list(kinds.values())


def _lots(found: Sequence[tuple[str, Shard]], target: int) -> list[list[tuple[str, Shard]]]:
    """Return the small shards in lots of up to `target` bytes, oldest first; large ones are not copied for a little."""
    lots: list[list[tuple[str, Shard]]] = [[]]
    size = 0
    for name, shard in found:
        if shard.data_bytes > target / 2:
            continue
        if size + shard.data_bytes > target and lots[-1]:
            lots.append([])
            size = 0
        lots[-1].append((name, shard))
        size += shard.data_bytes
    return lots


def _rewrite(place: Place, group: Sequence[tuple[str, Shard]], keep: Sequence[NDArray[np.bool_]]) -> None:
    """Publish one shard of the records to keep, where there are any; then remove the old ones."""
    tables, parts = [], []
    for (name, shard), chosen in zip(group, keep, strict=True):
        table = shard.table[chosen]
        if len(table):
            encoded = shards.open_data(place.folder(name, data=True), shard)
            lengths = table["tokens"].astype(np.int64)
            parts.append(encodings.take(encoded, encodings.ranges(table["start"], lengths)))
            tables.append(table)
    if tables:
        merged, encoded = np.concatenate(tables), encodings.join(parts)
        merged["start"] = np.cumsum(merged["tokens"], dtype=np.int64) - merged["tokens"]
        try:
            place.publish(lambda folder: shards.write(folder, merged, encoded))
        except OSError as error:
            raise Failure(
                f"{len(merged)} records could not be rewritten in {place.root!r} ({error}): nothing of them was "
                "removed; make room and start again"
            ) from error
    for name, _ in group:
        place.remove(name)


def _kept(
    found: Sequence[tuple[str, Shard]], fixed: int, since: float, max_bytes: int | None
) -> list[NDArray[np.bool_]]:
    """Return which records of each shard stay; `fixed` are the bytes that no record takes with it."""
    bought = np.concatenate([np.empty(0), *(shard.table["bought"] for _, shard in found)])
    keep = bought >= since
    if max_bytes is not None:
        newest = np.argsort(-bought, kind="stable")
        newest = newest[keep[newest]]
        spent = np.cumsum(_costs(found, 0)[newest])
        if len(spent) and round(spent[-1]) > max_bytes - fixed:
            spent = np.cumsum(_costs(found, _PADDING)[newest])
            keep[newest[spent > max_bytes - fixed]] = False
    return np.split(keep, np.cumsum([len(shard.table) for _, shard in found])[:-1]) if found else []


def _costs(found: Sequence[tuple[str, Shard]], padding: int) -> NDArray[np.float64]:
    """Return each record's bytes; a shard's header (and padding) is its newest record's, with which it goes."""
    parts = [np.empty(0)]
    for _, shard in found:
        size = shards.INDEX.itemsize
        cost = shard.data_bytes * shard.table["tokens"] / shard.table["tokens"].sum() + size
        # The first of equally new ones: evict takes them in this order.
        cost[np.argmax(shard.table["bought"])] += shard.index_bytes - size * len(cost) + padding
        parts.append(cost)
    return np.concatenate(parts)


def _gone(name: str, shard: Shard, gone: NDArray[np.bool_]) -> dict[str, Any]:
    table = shard.table[gone]
    tokens = int(table["tokens"].sum())
    return {
        "shard": name,
        "format": shard.format,
        "records": len(table),
        "of": len(gone),
        "tokens": tokens,
        "bytes": shard_bytes(shard)
        if gone.all()
        else round(shard.data_bytes * tokens / int(shard.table["tokens"].sum())) + len(table) * shards.INDEX.itemsize,
        "bought": {"first": float(table["bought"].min()), "last": float(table["bought"].max())},
    }
