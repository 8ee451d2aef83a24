"""A store behind an fsspec URL: downloaded once, verified on arrival, and never to be seen half."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from distill.buying import obtain
from distill.errors import Failure
from distill.signals import SignalStore
from distill.store import upkeep
from distill.store.command import main
from distill.store.places import place_of
from distill.store.remote_place import RemotePlace
from tests.distill.test_signal_formats import keys_of, rows_of, states
from tests.distill.test_signal_upkeep import ignore
from tests.distill.test_signals import CountingTeacher, assert_holds, keys, prompt_of, records, run


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty place of each kind, and a cache of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield f"memory://signals-{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/remote"
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/", recursive=True)


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Go on as another machine would: with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{len(list(tmp_path.iterdir()))}"))


def files(url: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(url)
    return {path: fs.cat_file(path) for path in fs.find(root)}


def test_what_is_bought_here_is_found_elsewhere(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bought = obtain(SignalStore(url), CountingTeacher(), [prompt_of(n) for n in range(10)], flush_rows=3)
    assert bought.bought_rows == 10
    elsewhere(monkeypatch, tmp_path)
    teacher = CountingTeacher(fails_after=0)
    assert obtain(SignalStore(url), teacher, [prompt_of(n) for n in range(10)]).reused_rows == 10
    assert_holds(SignalStore(url), range(10))
    assert SignalStore(url).get_many(keys(range(10)))[0].tolist() == [1 + n % 4 for n in range(10)]
    assert not [name for name in files(url) if ".partial" in name]


def test_a_shard_is_downloaded_once_and_only_when_its_records_are_read(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in (0, 5):
        SignalStore(url).put(records(range(first, first + 5)))
    elsewhere(monkeypatch, tmp_path)
    asked: list[str] = []
    download = RemotePlace._download
    monkeypatch.setattr(RemotePlace, "_download", lambda *given: asked.append(given[2]) or download(*given))
    assert SignalStore(url).contains(keys(range(10))).all()
    assert asked == ["index", "index"]
    assert_holds(SignalStore(url), range(5))
    assert asked == ["index", "index", "data"]
    assert_holds(SignalStore(url), range(10))
    assert asked == ["index", "index", "data", "data"]
    assert_holds(SignalStore(url), range(10))
    assert len(asked) == 4


def test_directions_lie_at_the_url_too(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rows_of(replace(states(64, 32, 4), format="hidden:svd4"), [32, 32])
    SignalStore(url).put(batch)
    here = SignalStore(url).get_many(keys_of(batch))[1]
    elsewhere(monkeypatch, tmp_path)
    there = SignalStore(url).get_many(keys_of(batch))[1]
    np.testing.assert_array_equal(here.states, there.states)  # type: ignore[union-attr]
    assert upkeep.stats(place_of(url))["bases"]["count"] == 1


@pytest.mark.parametrize("name", ["index", "data", "basis"])
def test_what_is_damaged_at_the_url_is_named_when_it_arrives_and_never_cached(
    url: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = rows_of(replace(states(64, 32, 4), format="hidden:svd4"), [32, 32])
    SignalStore(url).put(batch)
    fs, _ = fsspec.core.url_to_fs(url)
    ((path, content),) = [(path, content) for path, content in files(url).items() if f"/{name}" in path]
    flipped = bytearray(content)
    flipped[-1] ^= 1
    fs.pipe_file(path, bytes(flipped))
    assert main(["verify", url, "--json"]) == 1  # although the cache is whole
    (found,) = json.loads(capsys.readouterr().out)["damaged"]
    assert found["file"].startswith(url)
    assert found["file"].endswith("/".join(path.split("/")[-2:]) if name != "basis" else path.rsplit("/", 1)[-1])
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(Failure, match=found["file"]):
        SignalStore(url).get_many(keys_of(batch))
    fs.pipe_file(path, content)
    SignalStore(url).get_many(keys_of(batch))
    assert main(["verify", url]) == 0


def test_a_damaged_cache_is_filled_again(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("index", "data"):
        SignalStore(url).put(records(range(5)))
        (file,) = (tmp_path / "cache").rglob(f"shard-*/{name}")
        file.write_bytes(file.read_bytes()[:-1] + b"\0x")
        assert_holds(SignalStore(url), range(5))
        assert "damaged, it is downloaded again" in caplog.text
        caplog.clear()


def test_compaction_and_eviction_reach_the_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in range(0, 20, 5):
        SignalStore(url).put(records(range(first, first + 5)))
    elsewhere(monkeypatch, tmp_path)
    reader = SignalStore(url)
    assert_holds(reader, range(5))
    elsewhere(monkeypatch, tmp_path)
    assert main(["compact", url]) == 0
    assert len(files(url)) == 2
    assert_holds(reader, range(20))  # half of it cached, half of it found where it is now
    assert_holds(SignalStore(url), range(20))
    assert main(["evict", url, "--max-bytes", "0"]) == 0
    assert files(url) == {}
    assert len(SignalStore(url)) == 0


def test_an_upload_that_fails_at_any_call_leaves_nothing_to_be_seen(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    SignalStore(url).put(records(range(5)))
    calls = ("makedirs", "put_file", "mv")
    for fails_at in range(4):
        place, left = place_of(url), [fails_at]
        for name in calls:
            whole = getattr(place.fs, name)

            def call(*given: Any, whole: Any = whole, left: list[int] = left, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise ConnectionResetError("the line is dead")
                return whole(*given, **options)

            monkeypatch.setattr(place.fs, name, call)
        store = SignalStore(url)
        with pytest.raises(Failure, match=r"the line is dead.*start again; what was stored before is kept"):
            store.put(records(range(5, 10)))
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert_holds(SignalStore(url), range(5))
        assert len(SignalStore(url)) == 5
    assert SignalStore(url).put(records(range(10))) == 5


KILLED_AT_EACH_CALL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from dying import die_before_call
from test_signals import records
from distill.store import upkeep
from distill.store.places import place_of
from distill.signals import SignalStore

step = 0
while True:
    url = f"file://{sys.argv[1]}/{step}"
    os.environ["XDG_CACHE_HOME"] = f"{sys.argv[1]}/cache"
    for first in (0, 5):
        SignalStore(url).put(records(range(first, first + 5)))
    child = os.fork()
    if child == 0:
        fs = place_of(url).fs
        die_before_call(step, *((fs, name) for name in ("makedirs", "put_file", "mv", "rm")))
        SignalStore(url).put(records(range(10, 15)))
        upkeep.compact(place_of(url), lambda *_: None)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    step += 1
print(step)
"""


def test_a_process_killed_before_any_call_to_the_file_system_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = int(run(KILLED_AT_EACH_CALL, tmp_path))
    assert steps >= 4 + 4 + 2 * 3
    for step in range(steps):
        elsewhere(monkeypatch, tmp_path)
        url = f"file://{tmp_path}/{step}"
        store = SignalStore(url)
        assert_holds(store, range(10))
        assert store.contains(keys(range(10, 15))).all() == store.contains(keys(range(10, 15))).any()
        store.put(records(range(15)))
        upkeep.compact(place_of(url), ignore)
        assert len(SignalStore(url)) == 15
        assert_holds(SignalStore(url), range(15))
        assert upkeep.verify(place_of(url), ignore) == (1, [])


def test_what_killed_writers_left_at_the_url_is_swept_after_a_day(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SignalStore(url).put(records(range(5)))
    fs, root = fsspec.core.url_to_fs(url)
    old, young = "00000000001000000000-0", f"{2**62:020d}-0"
    for made in (old, young):
        fs.makedirs(f"{root}/shard-{made}")
        fs.pipe_file(f"{root}/shard-{made}/data", b"half")
        fs.pipe_file(f"{root}/.partial-{made}", b"half")
    assert_holds(SignalStore(url), range(5))
    upkeep.compact(place_of(url), ignore)
    left = [path for path in files(url) if path.endswith(("-0", "-0/data"))]
    assert len(left) == 2
    assert all(young in path for path in left)


def test_a_folder_written_by_two_urls_of_it_is_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    SignalStore(tmp_path / "store").put(records(range(5)))
    SignalStore(f"file://{tmp_path}/store").put(records(range(10)))
    for root in (tmp_path / "store", f"file://{tmp_path}/store", f"local://{tmp_path}/store/"):
        assert_holds(SignalStore(root), range(10))
    assert os.listdir(tmp_path / "cache" / "redistill") == ["signals"]
