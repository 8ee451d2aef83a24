"""Every row that comes in is trained or reported with a reason, and counts what it should."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import Failure, InputError
from distill.mixing import audit
from distill.mixing.selection import HELD, HELD_BEFORE, OUTCOMES, TRAINED, Candidates, Chosen, capped, choose, counts
from distill.mixture import load, save
from distill.mixture_settings import MixtureSettings

LONG = np.arange(100, 300, dtype=np.int32)
PLAIN = MixtureSettings(error_share=0.0, near_duplicates=0.9, drift_weight=1.0)


def candidates(prompts: list[Any], **given: Any) -> Candidates:
    rows = len(prompts)
    defaults: dict[str, Any] = {
        "answers": np.zeros(rows, np.int64),
        "logprob": np.full(rows, -0.01),
        "replay": np.zeros(rows, np.bool_),
        "differs": np.zeros(rows, np.bool_),
        "refused": np.full(rows, ""),
        "order": np.arange(rows, dtype=np.uint64),
    }
    arrays = {name: np.asarray(given.get(name, value), value.dtype if name != "refused" else None)
              for name, value in defaults.items()}  # fmt: skip
    return Candidates([np.asarray(prompt, np.int32) for prompt in prompts], **arrays)


def different(count: int) -> list[Any]:
    return [np.random.default_rng(number).integers(0, 1000, 30) for number in range(count)]


ROW = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, 2), min_size=1, max_size=4),
        "answer": st.integers(0, 2),
        "logprob": st.floats(-3, 0),
        "replay": st.booleans(),
        "differs": st.booleans(),
        "refused": st.sampled_from(["", "", "", audit.LABEL, audit.SAMPLES, audit.UNSURE, HELD_BEFORE]),
    }
)


@given(
    rows=st.lists(ROW, max_size=40),
    near=st.sampled_from([0.0, 0.5, 0.9]),
    share=st.sampled_from([0.0, 0.3, 0.9]),
    balance=st.sampled_from([0.0, 1.0]),
    most=st.sampled_from([1.0, 2.0, 10.0]),
)
@settings(deadline=None, max_examples=100)
def test_rows_in_are_rows_trained_and_rows_reported(
    rows: list[dict[str, Any]], near: float, share: float, balance: float, most: float
) -> None:
    names = ("answer", "logprob", "replay", "differs", "refused")
    given_ = {name: [row[name] for row in rows] for name in names}
    given_["answers"] = given_.pop("answer")
    candidate = candidates([row["prompt"] for row in rows], **given_)
    chosen = choose(
        candidate,
        MixtureSettings(near_duplicates=near, error_share=share, class_balance=balance, max_weight=most),
    )
    found = counts(chosen.outcome)
    assert sum(found.values()) == len(rows)
    assert set(found) == set(OUTCOMES)
    trained = chosen.outcome == TRAINED
    assert (chosen.outcome[candidate.refused != ""] == candidate.refused[candidate.refused != ""]).all()
    duplicate = np.char.startswith(chosen.outcome, "duplicate") if len(rows) else trained
    assert (trained | (chosen.outcome == HELD))[chosen.stands[duplicate]].all(), "one of each kind is there"
    assert trained[chosen.stands[duplicate]].all(), "a held row has no twin"
    assert (chosen.stands[~duplicate] == np.flatnonzero(~duplicate)).all()
    assert (chosen.weights[~trained] == 0).all()
    if trained.any():
        weights = chosen.weights[trained].astype(float)
        assert weights.min() > 0
        assert weights.mean() == pytest.approx(1, abs=1e-5)
        assert weights.max() <= most * (1 + 1e-5)
    held = chosen.outcome == HELD
    assert (candidate.differs & ~candidate.replay & (candidate.logprob >= -0.1))[held].all()


def test_an_outcome_that_is_none_is_not_passed_over() -> None:
    with pytest.raises(Failure, match=r"3 rows came in, 2 are accounted for: \['lost'\]"):
        counts(np.array([TRAINED, "lost", HELD]))


def test_of_equal_prompts_one_is_learned_and_counts_for_all() -> None:
    chosen = choose(candidates([[1, 2], [3], [1, 2], [1, 2]]), PLAIN)
    assert chosen.outcome.tolist() == [TRAINED, TRAINED, "duplicate_exact", "duplicate_exact"]
    assert chosen.stands.tolist() == [0, 1, 0, 0]
    assert chosen.weights.tolist() == [1.5, 0.5, 0, 0]


def test_nearly_equal_prompts_are_duplicates_only_where_the_teacher_answers_the_same() -> None:
    prompts = [LONG, np.append(LONG, 1), np.append(LONG, 2), np.append(LONG, 1), [5, 6]]
    chosen = choose(candidates(prompts, answers=[7, 7, 8, 7, 7]), PLAIN)
    assert chosen.outcome.tolist() == [TRAINED, "duplicate_near", TRAINED, "duplicate_exact", TRAINED]
    assert chosen.stands.tolist() == [0, 0, 2, 0, 4]
    assert chosen.weights[0] == pytest.approx(3 * chosen.weights[4])
    assert counts(choose(candidates(prompts), PLAIN.model_copy(update={"near_duplicates": 0.0})).outcome)[
        "duplicate_near"
    ] == 0  # fmt: skip


def test_the_teacher_error_set_is_what_the_teacher_is_sure_of_and_the_champion_is_not() -> None:
    rows = 200
    differs, sure, replay = (np.random.default_rng(seed).random(rows) < 0.5 for seed in range(3))
    candidate = candidates(
        different(rows), differs=differs, replay=replay, logprob=np.where(sure, -0.05, -0.5),
        order=np.random.default_rng(3).permutation(rows),
    )  # fmt: skip
    eligible = np.flatnonzero(differs & sure & ~replay)
    settings = MixtureSettings(error_share=0.5)
    held = np.flatnonzero(choose(candidate, settings).outcome == HELD)
    assert len(held) == len(eligible) // 2
    assert set(held) <= set(eligible)
    assert candidate.order[held].max() < candidate.order[np.setdiff1d(eligible, held)].min()
    few = choose(candidate, settings.model_copy(update={"error_rows": 3}))
    assert (few.outcome == HELD).sum() == 3


def test_a_row_that_stands_for_others_is_not_held_out() -> None:
    chosen = choose(candidates([[1, 2], [1, 2]], differs=[True, True]), MixtureSettings(error_share=0.99))
    assert chosen.outcome.tolist() == [TRAINED, "duplicate_exact"]


def test_rows_that_the_champion_answers_otherwise_weigh_more() -> None:
    settings = MixtureSettings(error_share=0.0, drift_weight=3.0)
    chosen = choose(candidates(different(4), differs=[True, False, False, False]), settings)
    assert chosen.weights.tolist() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 1.0), (0.5, 3.0), (1.0, 9.0)])
def test_balanced_classes_weigh_more_the_rarer_they_are(power: float, ratio: float) -> None:
    settings = PLAIN.model_copy(update={"class_balance": power})
    weights = choose(candidates(different(10), answers=[1] + [0] * 9), settings).weights
    assert weights[0] / weights[1] == pytest.approx(ratio)


def test_no_row_weighs_more_than_it_may() -> None:
    weights = np.array([100.0, 50.0, *[1.0] * 98])
    cut = capped(weights, 10.0)
    assert cut.max() / cut.mean() == pytest.approx(10)
    assert (cut[2:] == 1).all()
    assert (capped(weights, 1000.0) == weights).all()
    assert (capped(weights, 1.0) == 1).all()


def test_weights_come_back_as_they_were_saved_and_are_one_where_none_are_given(tmp_path: Any) -> None:
    prompts, keys = [np.array([5, 6], np.int32), np.array([7], np.int32)], np.zeros((2, 32), np.uint8)
    save(tmp_path / "weighted", prompts, keys, np.array([1.5, 0.5], np.float32))
    save(tmp_path / "plain", prompts, keys)
    assert load(tmp_path / "weighted").weights.tolist() == [1.5, 0.5]
    assert load(tmp_path / "plain").weights.tolist() == [1, 1]
    for wrong in ([1.5, 1.5], [2.0, 0.0], [1.0]):
        with pytest.raises(InputError, match="weights"):
            save(tmp_path / "wrong", prompts, keys, np.array(wrong, np.float32))


def test_a_file_of_an_earlier_version_has_rows_that_all_count_the_same(tmp_path: Any) -> None:
    from safetensors.numpy import load_file, save_file

    save(tmp_path / "new", [np.array([5], np.int32)], np.zeros((1, 32), np.uint8))
    parts = load_file(tmp_path / "new")
    del parts["weights"]
    save_file(parts, tmp_path / "old")
    assert load(tmp_path / "old").weights.tolist() == [1]


def test_no_row_at_all_is_no_error() -> None:
    chosen: Chosen = choose(candidates([]), MixtureSettings())
    assert len(chosen.outcome) == len(chosen.trained) == 0
