"""Files that requests are imported from: CSV, JSONL or Parquet, plain or compressed, read block by block.

A block holds columns as lists of Python objects. A line that cannot be taken apart is handed on beside the rows,
so that a single bad one does not cost the others. Bytes that are no UTF-8 come through as lone surrogates
(PEP 383) or bytes, which rows.to_text refuses; nothing is replaced.
"""

import csv
import json
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.compression import compr
from fsspec.utils import infer_compression

from monitoring.errors import InputError, masked

_BLOCK_ROWS = 8192
_BLOCK_BYTES = 32 * 2**20  # a block ends here, too: prompts can be long
_RECORD_BYTES = 16 * 2**20  # a CSV record longer than this is an open quote, not a prompt
_SUFFIXES = {"csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet", "pq": "parquet"}
FORMATS = ("csv", "jsonl", "parquet")


@dataclass(frozen=True)
class BadLine:
    """A line no row could be made of; position is counted from 1."""

    position: int
    reason: str
    raw: str


@dataclass
class Block:
    """Some rows: columns by name, each row's position (line of a text file, row of Parquet), bad lines, progress."""

    columns: dict[str, list[Any]]
    positions: list[int]
    bad: list[BadLine] = field(default_factory=list)
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Source:
    """A file to import, and how it is written."""

    url: str
    fs: Any
    path: str
    format: str


def find(url: str, format: str | None) -> Source:
    """The file behind a path or fsspec URL; InputError when it is not there or its format cannot be told."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
        there = fs.isfile(path)
    except (ImportError, ValueError, OSError) as error:
        raise InputError(
            masked(f"source {url!r} cannot be opened ({error}); give a file or an fsspec URL that answers")
        ) from None  # a cause would show the credentials of the URL
    if not there:
        raise InputError(masked(f"source {url!r} is not there, or no file"))
    parts = path.rsplit("/", 1)[-1].lower().split(".")
    endings = parts[:-1] if infer_compression(path) else parts
    known = format or _SUFFIXES.get(endings[-1])
    if known not in FORMATS:
        raise InputError(f"source {url!r}: the format cannot be told; give --format {'|'.join(FORMATS)}")
    return Source(url, fs, path, known)


def column_names(source: Source) -> list[str]:
    """The columns of the source, in order; InputError when it cannot be read or names are not usable."""
    with _reading(source):
        names = {"csv": _csv_header, "jsonl": _jsonl_keys, "parquet": _parquet_names}[source.format](source)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"source {source.url!r} has two columns named {twice[0]!r}; rename one")
        for name in names:
            name.encode()  # an error here is told as one of the whole file: its text is no UTF-8
    return names


def blocks(source: Source, columns: list[str]) -> Iterator[Block]:
    """The rows of these columns, block by block; InputError that names the file when it is damaged."""
    read = {"csv": _csv_blocks, "jsonl": _jsonl_blocks, "parquet": _parquet_blocks}[source.format]
    with _reading(source):
        yield from read(source, columns)


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError, pa.ArrowException, csv.Error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"source {source.url!r} cannot be read as {source.format} ({reason}); "
            "if it is damaged, get it again; if it is something else, give the right --format"
        ) from error


@contextmanager
def _open(source: Source) -> Iterator[tuple[BinaryIO, Callable[[], int], int]]:
    """The decompressed bytes, how far the file on disk is read, and its size."""
    codec = infer_compression(source.path)
    if codec not in (None, "gzip", "bz2", "xz"):
        raise InputError(f"source {source.url!r}: {codec} is not read (gz, bz2 and xz are); decompress it first")
    with source.fs.open(source.path, "rb") as raw:
        yield compr[codec](raw, mode="r"), raw.tell, source.fs.size(source.path)


def _csv_header(source: Source) -> list[str]:
    with _open(source) as (stream, _, _):
        return next(csv.reader(_lines(stream), strict=True), [])


def _lines(stream: BinaryIO) -> TextIOWrapper:
    return TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv_blocks(source: Source, columns: list[str]) -> Iterator[Block]:
    names = _csv_header(source)
    wanted = [names.index(column) for column in columns]
    with _open(source) as (stream, tell, total):
        pending: list[list[str]] = []
        block, size = Block({}, []), 0
        records = _csv_records(_lines(stream), len(names))
        next(records, None)  # the header
        for position, fields, raw in records:
            if fields is None:
                block.bad.append(BadLine(position, "malformed line", raw))
            else:
                pending.append(fields)
                block.positions.append(position)
            size += len(raw)
            if len(pending) + len(block.bad) >= _BLOCK_ROWS or size > _BLOCK_BYTES:
                yield _filled_csv(block, columns, wanted, pending, (tell(), total))
                pending, block, size = [], Block({}, []), 0
        yield _filled_csv(block, columns, wanted, pending, (total, total))


def _filled_csv(
    block: Block, columns: list[str], wanted: list[int], rows: list[list[str]], progress: tuple[int, int]
) -> Block:
    # A CSV file cannot tell an empty text from a missing one: it is taken as missing.
    block.columns = {name: [row[index] or None for row in rows] for name, index in zip(columns, wanted, strict=True)}
    block.done, block.total = progress
    return block


def _csv_records(lines: TextIOWrapper, width: int) -> Iterator[tuple[int, list[str] | None, str]]:
    """Yield (line number, fields, raw text); fields is None for a line that is no record of this width.

    An open quote swallows what follows it. When the swallowed text turns out to be no record, only its first line
    is given up and the others are read again.
    """
    numbered = enumerate(lines, start=1)
    pushed_back: deque[tuple[int, str]] = deque()
    taken: list[tuple[int, str]] = []

    def feed() -> Iterator[str]:
        size = 0
        while (item := pushed_back.popleft() if pushed_back else next(numbered, None)) is not None:
            size = size + len(item[1]) if taken else len(item[1])
            taken.append(item)
            if size > _RECORD_BYTES:
                raise csv.Error("the record is too long")
            yield item[1]

    csv.field_size_limit(max(csv.field_size_limit(), _RECORD_BYTES))
    reader = csv.reader(feed(), strict=True)
    while True:
        taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fields = None
        if fields == []:
            continue  # a blank line
        if fields is not None and len(fields) == width:
            yield taken[0][0], fields, "".join(line for _, line in taken)
            continue
        pushed_back.extendleft(reversed(taken[1:]))
        yield taken[0][0], None, taken[0][1].rstrip("\r\n")
        reader = csv.reader(feed(), strict=True)


def _jsonl_keys(source: Source) -> list[str]:
    keys: dict[str, None] = {}
    with _open(source) as (stream, _, _):
        for line in stream:
            row = _json_row(line, 0)
            if isinstance(row, dict):
                keys.update(dict.fromkeys(row))
    return list(keys)


def _json_row(line: bytes, position: int) -> dict[str, Any] | BadLine | None:
    """The object of one line; None for a blank one."""
    line = line.removeprefix(b"\xef\xbb\xbf").strip()
    if not line:
        return None
    try:
        row = json.loads(line.decode())
    except UnicodeError:
        return BadLine(position, "invalid UTF-8", line.decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else BadLine(position, "malformed line", line.decode())


def _jsonl_blocks(source: Source, columns: list[str]) -> Iterator[Block]:
    with _open(source) as (stream, tell, total):
        block, size = Block({name: [] for name in columns}, []), 0
        for position, line in enumerate(stream, start=1):
            row = _json_row(line, position)
            if isinstance(row, BadLine):
                block.bad.append(row)
            elif row is not None:
                block.positions.append(position)
                for name, values in block.columns.items():
                    values.append(row.get(name))
            size += len(line)
            if len(block.positions) + len(block.bad) >= _BLOCK_ROWS or size > _BLOCK_BYTES:
                block.done, block.total = tell(), total
                yield block
                block, size = Block({name: [] for name in columns}, []), 0
        block.done = block.total = total
        yield block


def _parquet_names(source: Source) -> list[str]:
    with source.fs.open(source.path, "rb") as handle:
        return [str(name) for name in pq.ParquetFile(handle).schema_arrow.names]


def _parquet_blocks(source: Source, columns: list[str]) -> Iterator[Block]:
    with source.fs.open(source.path, "rb") as handle:
        file = pq.ParquetFile(handle, page_checksum_verification=True)
        done, total = 0, file.metadata.num_rows
        for batch in file.iter_batches(_BLOCK_ROWS // 2, columns=columns):
            values = {name: _objects(batch.column(name)) for name in columns}
            positions = list(range(done + 1, done + batch.num_rows + 1))
            done += batch.num_rows
            yield Block(values, positions, [], done, total)


def _objects(array: Any) -> list[Any]:
    """Python objects of an Arrow array; text as bytes, since Parquet does not promise that it is UTF-8."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = array.cast(pa.large_binary())
    try:
        return list(array.to_pylist())
    except (ValueError, OverflowError):  # a time beyond what datetime holds: only that row is a bad one
        return [_object(scalar) for scalar in array]


def _object(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return f"{scalar.type} {scalar.value}"
