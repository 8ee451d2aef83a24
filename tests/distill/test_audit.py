"""What speaks against a teacher's answer, and that a student learns more when such answers are left out."""

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.mixing.audit import (
    LABEL,
    SAMPLES,
    UNSURE,
    agreement,
    contradicted,
    mean_logprob,
    quarantine,
    sampled_rows,
    shared,
)
from distill.mixture_settings import AuditSettings
from distill.store.encodings import picked
from distill.teachers.protocol import HiddenSignal, Signal

NAN = float("nan")
LOOK = AuditSettings(min_logprob=-1.0, agreement=0.5)


def test_a_label_that_is_not_the_teachers_answer_contradicts_it() -> None:
    assert contradicted(np.arange(3), np.array([1.0, 0.0, NAN])).tolist() == [False, True, False]
    assert contradicted(np.zeros(0, np.int64), np.zeros(0)).tolist() == []


def test_the_rows_of_one_prompt_vote_and_those_without_a_label_go_with_them() -> None:
    prompts = np.array([5, 5, 5, 5, 9, 9, 9])
    right = np.array([0.0, 0.0, 1.0, NAN, 0.0, 1.0, NAN])
    assert contradicted(prompts, right).tolist() == [True] * 4 + [False] * 3, "at evens the teacher is believed"


def test_what_samples_say_of_a_prompt_goes_for_all_its_rows() -> None:
    prompts, agreed = np.array([3, 3, 7, 3, 8]), np.array([NAN, 0.2, 0.9, 0.6, NAN])
    np.testing.assert_array_equal(shared(prompts, agreed), [0.2, 0.2, 0.9, 0.2, NAN])
    why = quarantine(np.zeros(5, np.bool_), shared(prompts, agreed), np.zeros(5), LOOK)
    assert why.tolist() == [SAMPLES, SAMPLES, "", SAMPLES, ""], "no duplicate is learned in the place of another"
    assert shared(np.zeros(0, np.int64), np.zeros(0)).tolist() == []


def test_agreement_is_the_share_of_samples_that_are_the_greedy_answer() -> None:
    same = np.array([[True, False, True], [True, False, False]])
    assert agreement(same, np.ones_like(same)).tolist() == [1.0, 0.0, 0.5]


def test_a_sample_that_was_withheld_is_neither_for_nor_against_the_answer() -> None:
    same = np.array([[True, False, False], [False, False, False]])
    given = np.array([[True, True, False], [False, True, False]])
    np.testing.assert_array_equal(agreement(same, given), [1.0, 0.0, NAN])


def test_the_mean_log_probability_is_that_of_the_answers_own_tokens() -> None:
    answer, ids = np.array([3, 8], np.int32), np.array([[3, 4], [5, 6]], np.int32)
    logprobs, tail = np.log([[0.5, 0.25], [0.5, 0.25]]).astype(np.float16), np.array([0.25, 0.25], np.float32)
    signal = Signal(answer, ids, logprobs, tail)
    assert mean_logprob(picked(signal, np.array([0]))) == pytest.approx(np.log(0.5), abs=1e-3)
    assert mean_logprob(signal) == pytest.approx((np.log(0.5) + np.log(0.25)) / 2, abs=1e-3)
    states = HiddenSignal(answer, np.zeros((2, 3), np.float32), np.array([-0.5, -1.5], np.float16))
    assert mean_logprob(states) == pytest.approx(-1.0)


def test_the_first_reason_is_named_and_a_row_that_nobody_asked_about_is_learned() -> None:
    against, agreed = np.array([True, False, False, False, False]), np.array([0.0, 0.4, 0.5, NAN, NAN])
    logprob = np.array([-2.0, -2.0, -0.5, -2.0, -1.0])
    assert quarantine(against, agreed, logprob, LOOK).tolist() == [LABEL, SAMPLES, "", UNSURE, ""]


def test_a_look_that_is_switched_off_puts_nothing_in_quarantine() -> None:
    off = AuditSettings(labels=False, agreement=0.0)
    assert quarantine(np.array([True]), np.array([0.0]), np.array([-9.0]), off).tolist() == [""]


def test_samples_are_asked_for_where_the_drift_is_first_and_for_no_more_rows_than_said() -> None:
    eligible, first = np.array([True, True, False, True, True]), np.array([False, True, True, False, False])
    order = np.array([9, 8, 0, 1, 5], np.uint64)
    assert sampled_rows(eligible, first, order, 2).tolist() == [1, 3]
    assert sampled_rows(eligible, first, order, 99).tolist() == [0, 1, 3, 4]
    assert sampled_rows(eligible, first, order, 0).tolist() == []


# A slice of ten classes on which the teacher is wrong in 20 % of the rows, where it is also less sure of itself.

CLASSES, FEATURES, WRONG = 10, 30, 0.2


class World:
    """Rows whose right answer is a linear function of their features, and what is known about each."""

    def __init__(self, seed: int, rows: int = 1200) -> None:
        self.rng = np.random.default_rng(seed)
        self.map = self.rng.normal(size=(FEATURES, CLASSES))
        self.features, self.truth = self.draw(rows)
        wrong = self.rng.random(rows) < WRONG
        self.teacher = np.where(wrong, (self.truth + self.rng.integers(1, CLASSES, rows)) % CLASSES, self.truth)
        label = np.where(
            self.rng.random(rows) < 0.02, self.rng.integers(0, CLASSES, rows), self.truth
        )  # people err too
        self.right = np.where(self.rng.random(rows) < 0.8, (label == self.teacher).astype(float), NAN)
        self.samples = self.rng.random((5, rows)) < np.where(wrong, 0.3, 0.9)

    def draw(self, rows: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        features = self.rng.normal(size=(rows, FEATURES))
        return features, (features @ self.map).argmax(1)

    def accuracy(self, learned: NDArray[np.bool_]) -> float:
        """Train a softmax regression on the teacher's answers to the rows, and return how often it is right."""
        x, y = self.features[learned], np.eye(CLASSES)[self.teacher[learned]]
        weights = np.zeros((FEATURES, CLASSES))
        for _ in range(300):
            scores = x @ weights
            odds = np.exp(scores - scores.max(1, keepdims=True))
            weights += 2.0 * x.T @ (y - odds / odds.sum(1, keepdims=True)) / len(x)
        unseen, truth = self.draw(4000)
        return float(((unseen @ weights).argmax(1) == truth).mean())


@pytest.mark.parametrize("signs", ["labels", "samples", "both"])
def test_a_student_of_a_teacher_that_errs_in_20_percent_is_better_for_the_quarantine(signs: str) -> None:
    everything, audited = [], []
    for seed in range(5):
        world = World(seed)
        rows = len(world.truth)
        agreed = (
            agreement(world.samples, np.ones_like(world.samples, bool)) if signs != "labels" else np.full(rows, NAN)
        )
        settings = AuditSettings(labels=signs != "samples", agreement=0.7)
        reasons = quarantine(contradicted(np.arange(rows), world.right), agreed, np.zeros(rows), settings)
        wrong = world.teacher != world.truth
        assert (reasons != "")[wrong].mean() > 0.7
        assert (reasons != "")[~wrong].mean() < 0.12
        everything.append(world.accuracy(np.ones(rows, np.bool_)))
        audited.append(world.accuracy(reasons == ""))
    gains = np.subtract(audited, everything)
    assert gains.min() > 0, (everything, audited)
    assert gains.mean() > 0.03, (everything, audited)
