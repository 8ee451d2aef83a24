"""The whole loop with a teacher on a real SGLang server, beside the same loop with the teacher in process."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.sglang.server import Options, Served, serving
from distill.signals import SignalStore
from distill.teachers.protocol import Signal

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1800)]

ROWS, YEAR = 300, "2016-01-01"
Ended = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def materials(arxiv_titles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """Return the first titles of 2016, a teacher that learned a little of them, and a base."""
    from demo.arxiv import BASE, TEACHER, VOCABULARY, read_titles
    from demo.teacher import make_student, train_teacher
    from demo.tokenizer import train_tokenizer

    rows = read_titles(arxiv_titles)
    rows = rows[rows["date"] >= YEAR].sort_values("date", kind="stable").head(ROWS)
    folder = tmp_path_factory.mktemp("materials")
    titles, categories = rows["title"].tolist(), rows["primary_cat"].tolist()
    tokenizer = train_tokenizer(titles, sorted(set(categories)), VOCABULARY)
    recipe: dict[str, Any] = {**TEACHER, "steps": 60}
    teacher = train_teacher(folder / "teacher", tokenizer, titles, categories, **recipe)
    return rows, teacher, make_student(folder / "base", tokenizer, **BASE)


@pytest.fixture(scope="module")
def served(materials: tuple[Any, Path, Path]) -> Iterator[Served]:
    with serving(Options(str(materials[1]))) as server:
        yield server


@pytest.fixture(scope="module")
def ended(materials: tuple[Any, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """Return a function: the teacher's settings, and other tables -> (workspace, how its first champion was made)."""
    import pandas as pd

    from demo.arxiv import request_log
    from demo.workspace import write_config
    from monitoring import traffic

    rows, teacher, base = materials

    def run(others: dict[str, dict[str, Any]] | None = None, **settings: Any) -> Ended:
        folder = tmp_path_factory.mktemp("workspace")
        traffic.append(str(folder / "traffic"), request_log(rows))
        after = (pd.Timestamp(rows["date"].max()) + pd.Timedelta(days=1)).date()
        tables: dict[str, dict[str, Any]] = {
            "student": {"name": "arxiv", "base": str(base), "max_prompt_tokens": 128, "max_new_tokens": 8},
            "teacher": {"model": str(teacher), **settings},
            "reference": {"window": f"{YEAR}..{after}"},
            "training": {"first_epochs": 1.0, "warmup_steps": 2},
            "drift": {"min_rows": 50},
            "audit": {"labels": False},
        }
        for table, values in (others or {}).items():
            tables[table] = {**tables.get(table, {}), **values}
        config = write_config(folder / "redistill.toml", tables, workspace=str(folder))
        command = [sys.executable, "-m", "flows.retrain", "--config", str(config), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return folder, dict(json.loads(done.stdout.splitlines()[-1]))

    return run


@pytest.fixture(scope="module")
def both(ended: Callable[..., Ended], served: Served) -> tuple[Ended, Ended]:
    return ended(backend="sglang", urls=served.url), ended()


def test_a_champion_is_made_and_promoted_from_the_servers_signals(both: tuple[Ended, Ended]) -> None:
    (_, remote), (_, local) = both
    assert (remote["outcome"], local["outcome"]) == ("promoted", "promoted")
    assert remote["signals"] == local["signals"]
    assert remote["signals"]["bought_tokens"] > 1000


def test_answers_are_the_in_process_teachers_and_probabilities_agree_to_1e_3(both: tuple[Ended, Ended]) -> None:
    remote, local = (SignalStore(folder / "signals") for (folder, _) in both)
    keys = local._index["key"]
    wanted = np.frombuffer(keys.tobytes(), np.uint8).reshape(-1, 32)
    assert len(remote) == len(local) > 150
    assert remote.contains(wanted).all()
    for key in wanted:
        theirs, own = remote.get(key.tobytes()), local.get(key.tobytes())
        assert isinstance(theirs, Signal)
        assert isinstance(own, Signal)
        assert theirs.answer.tolist() == own.answer.tolist()
        np.testing.assert_allclose(np.exp(theirs.logprobs.astype(float)), np.exp(own.logprobs.astype(float)), atol=1e-3)
        np.testing.assert_allclose(theirs.tail, own.tail, atol=1e-3)


def texts_of(folder: Path, base: Path) -> list[tuple[int, str]]:
    """Return tokens of the prompt and the answer of everything in a store, sorted."""
    from distill.prompts import load_tokenizer

    store, tokenizer = SignalStore(folder / "signals"), load_tokenizer(base)
    keys = np.frombuffer(store._index["key"].tobytes(), np.uint8).reshape(-1, 32)
    answers = [tokenizer.decode(store.get(key.tobytes()).answer, skip_special_tokens=True) for key in keys]
    return sorted(zip(store.lengths(keys)[0].tolist(), map(str.strip, answers), strict=True))


def test_the_same_server_asked_by_openais_protocol_gives_the_same_answers_and_a_champion_from_them_alone(
    ended: Callable[..., Ended], served: Served, materials: tuple[Any, Path, Path], both: tuple[Ended, Ended]
) -> None:
    alone = {"training": {"divergence": "none", "cross_entropy_weight": 1.0}, "mixture": {"error_share": 0.0}}
    options = {"served_model": str(materials[1]), "urls": served.url, "price_prompt": 1.0, "model": ""}
    folder, outcome = ended(alone, backend="openai", **options)
    assert outcome["outcome"] == "promoted"
    assert outcome["cost"]["asking"]["billed_prompt_tokens"] > 1000
    assert outcome["cost"]["bought"]["money"] > 0
    (_, _), (local, _) = both
    assert texts_of(folder, materials[2]) == texts_of(local, materials[2])


def test_a_server_that_the_run_starts_itself_is_gone_afterwards(ended: Callable[..., Ended]) -> None:
    import psutil

    folder, outcome = ended(backend="sglang", serve=True)
    assert outcome["outcome"] == "promoted"
    left = [each.info["cmdline"] for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"]]
    assert not [words for words in left if str(folder) in " ".join(words)]
