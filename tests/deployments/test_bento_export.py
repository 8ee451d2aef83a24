"""A container's build context is written without an engine: no root, pinned packages, whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from deployments.bento.build import Bento
from deployments.bento.export import export
from deployments.errors import Failure, InputError

pytestmark = pytest.mark.integration


def _command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "deployments.bento", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_the_context_holds_the_bento_runs_as_no_root_and_pins_all_packages(bento: Bento, tmp_path: Path) -> None:
    dockerfile = export(bento.path, tmp_path / "context").read_text()
    users = [line.split()[1] for line in dockerfile.splitlines() if line.startswith("USER")]
    assert users[-1] == "bentoml"
    there = {path.relative_to(tmp_path / "context") for path in (tmp_path / "context").rglob("*") if path.is_file()}
    own = {path.relative_to(bento.path) for path in bento.path.rglob("*") if path.is_file()}
    assert there == own | {Path("Dockerfile"), Path(".dockerignore")}
    pins = (tmp_path / "context" / "env" / "python" / "requirements.txt").read_text().split()
    assert all("==" in pin for pin in pins)
    assert {"starlette", "uvicorn", "tokenizers", "torch"} <= {pin.partition("==")[0] for pin in pins}


def test_a_checkpoint_is_exported_by_the_command(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "context"
    limits = ("--max-prompt-tokens", "24", "--max-new-tokens", "12")
    done = _command("export", str(student), str(out), "--student", "tiny", *limits)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"wrote {out / 'Dockerfile'}: docker build {out}"
    assert (out / "src" / "checkpoint" / "model.safetensors").is_file()
    again = _command("export", str(student), str(out), *limits)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(bento: Bento, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no bento\.yaml"):
        export(tmp_path, tmp_path / "out")
    for name in ("bento.yaml", "env/docker/Dockerfile"):
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_text("FROM x\nUSER bentoml\nUSER root\n")
    with pytest.raises(Failure, match="runs as root"):
        export(tmp_path / "b", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def test_a_folder_that_is_none_is_refused_by_the_command(tmp_path: Path) -> None:
    done = _command("serve", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "is no folder" in done.stderr
