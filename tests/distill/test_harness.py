"""Tasks of lm-eval as scores of a checkpoint."""

import json
import sys
from pathlib import Path

import pytest

from distill import harness
from distill.errors import InputError
from distill.likelihood import score_targets
from distill.loaded import load

CHOICES = ["billing high", "technical low"]


def task(folder: Path, name: str = "tickets", metric: str = "acc", rows: int = 12) -> str:
    """Write a multiple-choice task with its data and return its YAML file."""
    data = folder / f"{name}.jsonl"
    lines = [json.dumps({"prompt": f"ticket {n}, the printer", "label": n % 2}) for n in range(rows)]
    data.write_text("\n".join(lines))
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": CHOICES,
        "doc_to_target": "{{label}}",
        "target_delimiter": "",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML
    return str(file)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_a_task_is_scored_document_by_document_by_what_the_model_finds_likelier(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    loaded = load(tiny_checkpoint, "cpu")
    done: list[tuple[int, int]] = []
    found = harness.scores([task(tmp_path)], loaded, progress=lambda *at: done.append(at))
    assert done == [(1, 1)]
    assert found.keys() == {"tickets acc"}
    likelier = []
    for n in range(12):
        sums = []
        for choice in CHOICES:
            tokens = len(loaded.tokenizer(choice, add_special_tokens=False)["input_ids"])
            # without the end of the answer, which lm-eval does not ask for
            whole = score_targets(loaded, [f"ticket {n}, the printer"], [choice], max_prompt_tokens=99,
                                  max_new_tokens=tokens)  # fmt: skip
            sums.append(float(whole.mean_logprob[0]) * tokens)
        likelier.append(int(sums[1] > sums[0]))
    assert found["tickets acc"].tolist() == [float(likelier[n] == n % 2) for n in range(12)]


def test_the_digest_goes_by_documents_and_configuration(tmp_path: Path) -> None:
    file = task(tmp_path)
    one = harness.digest([file])
    assert harness.digest([file]) == one
    (tmp_path / "other").mkdir()
    assert harness.digest([task(tmp_path / "other")]) == one, "wherever it lies"
    assert harness.digest([task(tmp_path / "other", rows=13)]) != one
    assert harness.digest([task(tmp_path / "other", metric="acc_norm")]) != one
    assert harness.digest([file, task(tmp_path, "second")]) != one


@pytest.mark.parametrize("missing", ["file", "data"])
def test_a_task_that_cannot_be_read_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    file = task(tmp_path, "gone")
    Path(file if missing == "file" else tmp_path / "gone.jsonl").unlink()
    with pytest.raises(InputError, match=r"judging\.lm_eval: task .*gone\.yaml' cannot be read"):
        harness.digest([file])


def test_without_lm_eval_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = task(tmp_path)
    harness._manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r'pip install "redistill\[lm-eval\]"'):
        harness.digest([file])
