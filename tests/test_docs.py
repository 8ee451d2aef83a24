"""README tells the truth: its settings are ours, its commands exist, its demo output is a real one's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.settings import load, markdown

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_of_settings_is_the_settings() -> None:
    assert f"<!-- settings -->\n{markdown()}\n<!-- /settings -->" in README


def test_the_settings_file_that_is_shown_is_valid(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "redistill.toml").write_text(shown)
    assert load(tmp_path / "redistill.toml").student.name == "helpdesk"


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", README)) - {"flows.settings"}))
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
