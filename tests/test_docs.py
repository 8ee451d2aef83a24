"""README and tutorial tell the truth: settings are ours, commands exist, the demo's output is real, scripts run."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from distill import checkpoint
from flows.settings import load, markdown

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs" / "distil.md").read_text()
SCRIPT, *VARIATIONS = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
LIMIT = 180.0  # seconds, on a machine that is busy with something else
# As where only what distill needs is installed.
BARE = """
import sys

OTHERS = {"prefect", "evidently", "mlflow", "bentoml", "pandas", "tasks", "flows", "monitoring", "deployments"}


class Bare:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *others):
        return None if name.partition(".")[0] in OTHERS else self.finder.find_spec(name, *others)


sys.meta_path = [Bare(finder) for finder in sys.meta_path]
"""


def test_the_table_of_settings_is_the_settings() -> None:
    assert f"<!-- settings -->\n{markdown()}\n<!-- /settings -->" in README


def test_the_settings_file_that_is_shown_is_valid(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "redistill.toml").write_text(shown)
    assert load(tmp_path / "redistill.toml").student.name == "helpdesk"


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"python -m ([\w.]+)", README + TUTORIAL)) - {"flows.settings"})
)
def test_every_command_that_is_shown_answers_help(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_the_work_pool_that_is_shown_is_the_deployments() -> None:
    deployments = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    pools = {entry["work_pool"]["name"] for entry in deployments}
    assert pools == set(re.findall(r"work-pool create (\S+)", README)) == set(re.findall(r"--pool (\S+)", README))


def test_the_demo_output_that_is_shown_holds_and_promotes() -> None:
    (shown,) = re.findall(r"<!-- demo -->(.*?)<!-- /demo -->", README, re.DOTALL)
    assert re.findall(r"^(HELD|PROMOTED|REJECTED) ", shown.replace("    ", ""), re.MULTILINE) == ["HELD", "PROMOTED"]


# --- docs/distil.md --------------------------------------------------------------------------------------------------


@pytest.fixture
def beginner(
    tiny_checkpoint: Path, checkpoint_maker: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with what the tutorial asks for, and this process in it."""
    shutil.copytree(tiny_checkpoint, tmp_path / "models" / "student")
    checkpoint_maker(tmp_path / "models" / "teacher", seed=1)
    (tmp_path / "prompts.txt").write_text("".join(f"the printer {n} does not print\n" for n in range(124)), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_script_runs_without_the_other_packages_and_its_request_makes_the_same_student_again(
    beginner: Path,
) -> None:
    assert sum(bool(line.strip()) for line in SCRIPT.splitlines()) <= 20
    (beginner / "script.py").write_text(BARE + SCRIPT)
    said = ran(sys.executable, "script.py").splitlines()
    assert said[-1].startswith("distilled/student: ")
    assert said[-1].endswith(" of 100 answers are the teacher's")
    assert "teacher: 24 prompts, 24 asked and 0 found again" in "\n".join(said)
    made, again = beginner / "distilled", beginner / "again"
    named = re.findall(r"^\| `(\w[\w.]*)/?` \|", TUTORIAL.partition("## What is in the folder")[2], re.MULTILINE)
    assert set(named) == {path.name for path in made.iterdir()}
    request = json.loads((made / "request.json").read_text())
    (beginner / "again.json").write_text(json.dumps({**request, "output": str(again)}))
    ran(sys.executable, "-m", "distill.worker", "again.json")
    assert checkpoint.digest(again / "student") == checkpoint.digest(made / "student")
    assert losses(again) == losses(made)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(VARIATIONS)))
def test_every_variation_replaces_a_line_of_the_script_and_runs(
    number: int, beginner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = VARIATIONS[number].partition(" = ")[0]
    changed, count = re.subn(rf"^{name} = .*\n", VARIATIONS[number], SCRIPT, flags=re.MULTILINE)
    assert count == 1
    exec(compile(changed, f"variation {number}", "exec"), {"__name__": "__main__"})
    assert "distilled/student: " in capsys.readouterr().out.splitlines()[-1]
    assert len(losses(beginner / "distilled")) == 3


def test_the_errors_that_the_tutorial_explains_are_ours() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "distill").rglob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    explained = re.findall(r"^\| `(.*?)` \|", TUTORIAL.partition("## What the errors mean")[2], re.MULTILINE)
    assert len(explained) > 5
    for fragment in explained:
        assert any(isinstance(text, str) and fragment in text for text in texts), fragment


def test_the_settings_that_the_tutorial_names_are_ours() -> None:
    fields = set(re.findall(r"^\| `([\w.]+)` \|", README, re.MULTILINE))
    for named in re.findall(r"`((?:student|teacher|training)\.\w+)`", TUTORIAL):
        assert named in fields
