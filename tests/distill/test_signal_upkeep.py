"""Keeping a store whole and small, beside readers and writers, whatever dies; and `python -m distill.signals`."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.errors import InputError
from distill.signals import SignalStore
from distill.store import upkeep
from distill.store.command import main
from distill.store.places import place_of
from tests.distill.test_signal_formats import rows_of, states
from tests.distill.test_signals import assert_holds, keys, publish, records, run


def ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""


def filled(root: Path, shards: int = 8, each: int = 5) -> Path:
    """A store of several shards, the first bought a day before the second, and so on."""
    for first in range(0, shards * each, each):
        SignalStore(root).put(records(range(first, first + each)))
    return root


def aged(root: Path, monkeypatch: pytest.MonkeyPatch, days: int, each: int = 10) -> Path:
    """A store with `each` records bought on every one of so many days, from day 1 on."""
    from distill.store import records as packed

    for day in range(1, days + 1):
        monkeypatch.setattr(packed.time, "time", lambda day=day: day * upkeep.DAY)
        SignalStore(root).put(records(range(each * day, each * (day + 1))))
    monkeypatch.undo()
    return root


def size(root: Path) -> int:
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file() and file.name != ".lock")


def test_compaction_keeps_every_record_in_one_shard(tmp_path: Path) -> None:
    filled(tmp_path)
    publish(tmp_path, records(range(3)))  # there already
    seen: list[tuple[int, int]] = []
    done = upkeep.compact(place_of(tmp_path), lambda *now: seen.append(now))
    assert done == {"shards_before": 9, "shards_after": 1, "duplicates": 3}
    assert seen == [(9, 9)]
    store = SignalStore(tmp_path)
    assert len(store) == 40
    assert_holds(store, range(40))
    assert upkeep.compact(place_of(tmp_path), ignore)["shards_after"] == 1
    assert upkeep.verify(place_of(tmp_path), ignore) == (1, [])


def test_ids_of_different_bits_and_formats_are_compacted_as_what_they_are(tmp_path: Path) -> None:
    store = SignalStore(tmp_path)
    wide = [(key, tokens, replace(each, ids=each.ids + 2**17)) for key, tokens, each in records(range(5))]
    store.put(wide)
    store.put(records(range(5, 10)))
    hidden = {
        name: rows_of(replace(states(64, 32, 4), format=name), [32, 32], name)
        for name in ("hidden:svd4", "hidden:int8")
    }
    for batch in hidden.values():
        for record in batch:
            store.put([record])
    before = {record[0]: store.get(record[0]) for batch in hidden.values() for record in batch}
    assert upkeep.compact(place_of(tmp_path), ignore)["shards_after"] == 3
    store = SignalStore(tmp_path)
    assert_holds(store, range(5, 10))
    for key, _, each in wide:
        np.testing.assert_array_equal(store.get(key).ids, each.ids)
        np.testing.assert_array_equal(store.get(key).answer, each.answer)
    for key, each in before.items():
        np.testing.assert_array_equal(store.get(key).states, each.states)


def test_large_shards_are_left_alone_and_lots_keep_to_the_target(tmp_path: Path) -> None:
    filled(tmp_path)
    sizes = [file.stat().st_size for file in tmp_path.glob("shard-*/data")]
    upkeep.compact(place_of(tmp_path), ignore, target=3 * max(sizes))
    after = [file.stat().st_size for file in tmp_path.glob("shard-*/data")]
    assert 1 < len(after) < len(sizes)
    assert max(after) <= 3 * max(sizes)
    assert_holds(SignalStore(tmp_path), range(40))


def test_a_reader_goes_on_while_its_shards_are_compacted_or_evicted(tmp_path: Path) -> None:
    reader, fresh = SignalStore(filled(tmp_path)), SignalStore(tmp_path)
    mapped = reader.get(keys([3])[0].tobytes())
    reader.get_many(keys(range(20)))
    upkeep.compact(place_of(tmp_path), ignore)
    assert_holds(reader, range(40))  # half of it mapped before, half of it found where it is now
    assert_holds(fresh, range(40))
    upkeep.evict(place_of(tmp_path), ignore, max_bytes=0)
    assert_holds(reader, range(40))
    np.testing.assert_array_equal(mapped.answer, records([3])[0][2].answer)
    assert len(SignalStore(tmp_path)) == 0


KILLED_AT_EACH_STEP = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from dying import die_before_call
from distill.store import shards, upkeep
from distill.store.places import place_of

root, act, step = Path(sys.argv[1]), sys.argv[2], 0
while True:
    copy = root.with_name(f"{root.name}-{step}")
    shutil.copytree(root, copy)
    child = os.fork()
    if child == 0:
        die_before_call(step, (shards, "write"), (os, "fsync"), (os, "rename"), (os, "unlink"), (os, "rmdir"))
        place = place_of(copy)
        if act == "compact":
            upkeep.compact(place, lambda *_: None)
        else:
            upkeep.evict(place, lambda *_: None, max_age=5.5 * upkeep.DAY, now=10 * upkeep.DAY)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    step += 1
print(step)
"""


def test_a_compaction_killed_before_any_step_loses_no_record(tmp_path: Path) -> None:
    steps = int(run(KILLED_AT_EACH_STEP, filled(tmp_path / "store", shards=3), "compact"))
    assert steps >= 6 + 3 * 4  # as many as a writer's, and renaming, two files and a folder for each of the old
    for step in range(steps):
        copy = tmp_path / f"store-{step}"
        assert_holds(SignalStore(copy), range(15))
        upkeep.compact(place_of(copy), ignore)
        store = SignalStore(copy)
        assert len(store) == 15
        assert_holds(store, range(15))


def test_an_eviction_killed_before_any_step_keeps_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aged(tmp_path / "store", monkeypatch, days=7)
    upkeep.compact(place_of(tmp_path / "store"), ignore)
    steps = int(run(KILLED_AT_EACH_STEP, tmp_path / "store", "evict"))
    for step in range(steps):
        assert_holds(SignalStore(tmp_path / f"store-{step}"), range(50, 80))


COMPACTED_AGAIN_AND_AGAIN = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_signals import assert_holds, records
from distill.store import upkeep
from distill.store.places import place_of
from distill.signals import SignalStore

root, count = Path(sys.argv[1]), 120
def writer():
    store = SignalStore(root)
    for first in range(count, 5 * count, 10):
        store.put(records(range(first, first + 10)))
def reader():
    store = SignalStore(root)
    for _ in range(6):
        store.refresh()
        assert_holds(store, range(count))
        assert_holds(SignalStore(root), range(count))
children = []
for act in (writer, reader, reader):
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
left, rounds = set(children), 0
while left:
    upkeep.compact(place_of(root), lambda *_: None)
    rounds += 1
    for child in list(left):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            left.remove(child)
            assert status == 0, status
print(rounds)
"""


@pytest.mark.integration
def test_readers_and_a_writer_in_other_processes_notice_nothing_of_compactions(tmp_path: Path) -> None:
    filled(tmp_path, shards=12, each=10)
    assert int(run(COMPACTED_AGAIN_AND_AGAIN, tmp_path)) > 2
    assert_holds(SignalStore(tmp_path), range(600))
    assert upkeep.verify(place_of(tmp_path), ignore)[1] == []


def test_what_was_bought_too_long_ago_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aged(tmp_path, monkeypatch, days=7)
    done = upkeep.evict(place_of(tmp_path), ignore, max_age=5.5 * upkeep.DAY, now=10 * upkeep.DAY)
    assert done["evicted"]["records"] == 40
    assert [(each["records"], each["of"]) for each in done["by_shard"]] == [(10, 10)] * 4
    store = SignalStore(tmp_path)
    assert not store.contains(keys(range(10, 50))).any()
    assert_holds(store, range(50, 80))
    assert done["kept"] == {"records": 30, "bytes": size(tmp_path)}


@pytest.mark.parametrize("compacted", [False, True])
def test_the_least_recently_bought_go_until_the_rest_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compacted: bool
) -> None:
    aged(tmp_path, monkeypatch, days=7)
    if compacted:
        upkeep.compact(place_of(tmp_path), ignore)
    before = size(tmp_path)
    assert upkeep.evict(place_of(tmp_path), ignore, max_bytes=before)["evicted"]["records"] == 0
    for limit in (0.9, 0.6, 0.3):
        told = upkeep.evict(place_of(tmp_path), ignore, max_bytes=int(before * limit), dry_run=True)
        assert size(tmp_path) > before * limit
        done = upkeep.evict(place_of(tmp_path), ignore, max_bytes=int(before * limit))
        assert told["evicted"] == done["evicted"]
        assert size(tmp_path) <= before * limit
        assert done["kept"]["bytes"] == size(tmp_path)
        store = SignalStore(tmp_path)
        bought = store._index["bought"]
        assert len(store) == done["kept"]["records"] > 0
        # Whole days stay from some day on, and of one day perhaps a part.
        days, counts = np.unique(bought, return_counts=True)
        assert days[-1] == 7 * upkeep.DAY
        assert (np.diff(days) == upkeep.DAY).all()
        assert (counts[1:] == 10).all()


def test_a_second_compaction_or_eviction_at_the_same_time_is_refused(tmp_path: Path) -> None:
    place = place_of(filled(tmp_path, 2))
    with place.alone():
        for act in (
            lambda: upkeep.compact(place_of(tmp_path), ignore),
            lambda: upkeep.evict(place, ignore, max_bytes=0),
        ):
            with pytest.raises(InputError, match="under way: start again when it has ended"):
                act()
    assert len(SignalStore(tmp_path)) == 10


def test_every_damaged_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, 4)
    SignalStore(tmp_path).put(rows_of(replace(states(64, 32, 4), format="hidden:svd4"), [32, 32]))
    assert main(["verify", str(tmp_path)]) == 0
    assert "5 shards read, 0 files damaged" in capsys.readouterr().out
    folders = sorted(tmp_path.glob("shard-*"))
    damaged = [folders[0] / "index", folders[1] / "data", folders[2] / "index", next(tmp_path.glob("basis-*"))]
    for file in (damaged[0], damaged[1], damaged[3]):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    damaged[2].unlink()
    assert main(["verify", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {each["file"] for each in found["damaged"]} == {str(file) for file in damaged}
    assert main(["verify", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert all(str(file) in text for file in damaged)
    assert main(["compact", str(tmp_path)]) == 1  # and removes nothing
    assert str(damaged[0]) in capsys.readouterr().err
    damaged[3].unlink()
    assert main(["verify", str(tmp_path), "--json"]) == 1
    assert str(damaged[3]) in capsys.readouterr().out


def test_stats_say_what_is_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, 4)
    signal = replace(states(64, 32, 4), format="hidden:int8")
    SignalStore(tmp_path).put(rows_of(signal, [32, 32]))
    assert main(["stats", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == size(tmp_path)
    topk, hidden = found["formats"]["topk:4"], found["formats"]["hidden:int8"]
    assert (topk["shards"], topk["records"], topk["prompt_tokens"]) == (4, 20, 60)
    assert topk["answer_tokens"] == sum(1 + n % 4 for n in range(20))
    assert hidden["tokens_kept_as"] == {"int8": 64}
    assert 0 < hidden["relative_error"]["mean"] <= hidden["relative_error"]["max"] < 0.02
    assert main(["stats", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "topk:4" in text
    assert "hidden:int8" in text


def test_the_command_compacts_and_evicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, 4)
    assert main(["compact", str(tmp_path)]) == 0
    assert "4 shards are 1 now, 0 records were there twice" in capsys.readouterr().out
    assert main(["evict", str(tmp_path), "--max-bytes", "0", "--dry-run"]) == 0
    assert "20 records" in capsys.readouterr().out
    assert main(["evict", str(tmp_path), "--max-age", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evicted"]["records"] == 0
    assert main(["evict", str(tmp_path), "--max-age", "0"]) == 0
    assert "20 of 20" in capsys.readouterr().out
    assert len(SignalStore(tmp_path)) == 0


BAD_USE: list[tuple[list[str], str]] = [
    ([], "required: stats|verify|compact|evict"),
    (["clean", "."], "invalid choice: 'clean'"),
    (["evict", "."], "nothing to evict by"),
    (["evict", ".", "--max-bytes", "many"], "'many' is no size"),
    (["evict", ".", "--max-age", "-1"], "'-1' is no age"),
    (["stats", "nowhere"], "'nowhere': there is no such folder"),
    (["stats", "nosuch://bucket"], "'nosuch://bucket' cannot be opened"),
]


@pytest.mark.parametrize(("arguments", "expected"), BAD_USE)
def test_bad_use_is_said_in_one_line_and_is_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: Any = main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert expected in capsys.readouterr().err


def test_the_module_is_the_command(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    filled(tmp_path / "s", 1)
    options: dict[str, Any] = {"cwd": root, "capture_output": True, "text": True, "timeout": 120}
    command = ["-m", "distill.signals", "stats", str(tmp_path / "s"), "--json"]
    found = subprocess.run([sys.executable, "-X", "importtime", *command], **options)
    assert found.returncode == 0
    assert json.loads(found.stdout)["formats"]["topk:4"]["records"] == 5
    assert "| torch" not in found.stderr.replace("  ", "")
    helped = subprocess.run([sys.executable, "-m", "distill.signals", "--help"], **options)
    assert "exit codes: 0 done, 1 damage was found" in helped.stdout
