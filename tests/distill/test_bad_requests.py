"""python -m distill.worker and distill.launch with a request that cannot be used: one line, exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from distill import launch, mixture, worker
from distill.buying import obtain
from distill.signals import SignalStore
from distill.teachers.local import LocalTeacher

Fields = dict[str, Any]
BROKEN: dict[str, tuple[Callable[[Fields], Fields], str]] = {
    "a missing start": (lambda f: {**f, "start": "/no/such"}, "start '/no/such': there is no such folder"),
    "a missing mixture": (lambda f: {**f, "mixture": "/no/such"}, "mixture '/no/such': there is no such file"),
    "a missing store": (lambda f: {**f, "signals": "/no/such"}, "signals '/no/such': there is no such folder"),
    "a missing teacher": (lambda f: {**f, "teacher": "/no/such"}, "teacher '/no/such': there is no such folder"),
    "a live teacher without a name": (
        lambda f: {**f, "settings": {**f["settings"], "live_teacher": True}},
        "the request names no teacher",
    ),
    "an output that cannot be made": (
        lambda f: {**f, "output": "/dev/null/out"},
        "output '/dev/null/out' cannot be written (Not a directory): name another folder",
    ),
    "an unknown field": (lambda f: {**f, "beam": 1}, "is of another version: it has beam, unknown here"),
    "an unknown setting": (
        lambda f: {**f, "settings": {**f["settings"], "beam": 1}},
        "is of another version, or damaged (settings.beam: Extra inputs are not permitted)",
    ),
    "a missing field": (
        lambda f: {name: value for name, value in f.items() if name != "epochs"},
        "is of another version, or damaged (epochs: ",
    ),
    "a text for a number": (lambda f: {**f, "epochs": "many"}, "is of another version, or damaged (epochs: "),
    "no learning rate": (lambda f: {**f, "learning_rate": 0}, "is of another version, or damaged (learning_rate: "),
    "a list": (lambda f: [f], "cannot be read"),  # type: ignore[dict-item,return-value]
}


def told(command: Any, path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[int, str]:
    """Return exit code and the only line of standard error."""
    monkeypatch.setattr("sys.argv", ["command", str(path), *more])
    capsys.readouterr()
    code = command()
    (line,) = capsys.readouterr().err.splitlines()
    assert not dist.is_initialized()
    return code, line


@pytest.mark.parametrize("command", [worker.main, launch.main], ids=["worker", "launch"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_request_that_cannot_be_used_is_told_in_one_line(
    kind: str, command: Any, request_in: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = request_in(tmp_path)
    change, said = BROKEN[kind]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    code, line = told(command, path, capsys, monkeypatch)
    assert (code, said in line, line.startswith("InputError: ")) == (2, True, True), line


@pytest.mark.parametrize("command", [worker.main, launch.main], ids=["worker", "launch"])
@pytest.mark.parametrize("content", [None, "{", "null"])
def test_what_is_no_request_is_told_in_one_line(
    content: str | None, command: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "request.json"
    if content is not None:
        path.write_text(content)
    code, line = told(command, path, capsys, monkeypatch)
    assert (code, "cannot be read" in line) == (2, True), line


@pytest.mark.parametrize("command", [worker.main, launch.main], ids=["worker", "launch"])
@pytest.mark.parametrize(("name", "found"), [("checkpoints", "no folder"), ("metrics.jsonl", "no file")])
def test_something_else_in_the_place_of_what_a_training_writes_is_told_in_one_line(
    name: str, found: str, command: Any, request_in: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = request_in(tmp_path)
    if found == "no folder":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    code, line = told(command, path, capsys, monkeypatch)
    assert (code, f"has a {name!r} that is {found}: move it away" in line) == (2, True), line


def test_an_architecture_that_is_unknown_is_told_in_one_line(
    request_in: Any, checkpoint_maker: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = checkpoint_maker(tmp_path / "start")
    (start / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    code, line = told(worker.main, request_in(tmp_path, start=start), capsys, monkeypatch)
    assert (code, "nonsense" in line, line.endswith("copy or export it again")) == (2, True, True), line


@pytest.mark.parametrize("content", [b"", b"something else", b"\x02" + b"\0" * 7 + b"{}"])
def test_a_damaged_mixture_is_named(
    content: bytes, request_in: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = request_in(tmp_path)
    (tmp_path / "mixture").write_bytes(content)
    path.write_text(json.dumps({**json.loads(path.read_text()), "mixture": str(tmp_path / "mixture")}))
    code, line = told(worker.main, path, capsys, monkeypatch)
    assert (code, f"mixture {str(tmp_path / 'mixture')!r} cannot be read" in line) == (2, True), line


def test_an_empty_store_is_a_failure_that_says_what_to_do(
    request_in: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = request_in(tmp_path)
    (tmp_path / "signals").mkdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "signals": str(tmp_path / "signals")}))
    code, line = told(worker.main, path, capsys, monkeypatch)
    assert (code, "was removed or never bought; ask the teacher again" in line) == (1, True), line


def test_stored_states_without_their_teacher_are_told(
    request_in: Any, made_up_mixture: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = mixture.load(made_up_mixture / "mixture.safetensors")
    prompts = [rows.prompt(row) for row in range(len(rows))]
    states = LocalTeacher(tiny_checkpoint, top_k=0, max_new_tokens=4, device="cpu", signals_format="hidden:bf16")
    found = obtain(SignalStore(tmp_path / "signals"), states, prompts)
    mixture.save(tmp_path / "mixture", prompts, found.keys)
    path = request_in(tmp_path)
    places = {"signals": str(tmp_path / "signals"), "mixture": str(tmp_path / "mixture")}
    path.write_text(json.dumps({**json.loads(path.read_text()), **places}))
    code, line = told(worker.main, path, capsys, monkeypatch)
    assert (code, "need the teacher's output layer: name its checkpoint" in line) == (2, True), line


@pytest.mark.parametrize("option", ["--processes=0", "--restarts=-1", "--nodes=many", "--node-rank=-1"])
def test_an_option_that_means_nothing_is_refused(
    option: str, tmp_path: Path, request_in: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["launch", str(request_in(tmp_path)), option])
    with pytest.raises(SystemExit) as ended:
        launch.main()
    assert ended.value.code == 2
    assert "is no whole number from " in capsys.readouterr().err
