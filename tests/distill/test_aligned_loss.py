"""The loss against a teacher with another tokenizer is plain torch's in float64, and as ever where nothing differs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.alignment.alignment import NONE, Alignment
from distill.alignment.translated import Translated, translated
from distill.divergence import Aligned, Head, TopK, losses
from distill.loss.formulas import FORMULAS
from distill.settings import Divergence
from distill.teachers.protocol import Signal

TOKENS, VOCABULARY, THEIRS, WIDTH, KEPT = 40, 30, 34, 8, 6


def made_up(generator: np.random.Generator, *, k: int = KEPT, theirs: int = THEIRS, tokens: int = TOKENS) -> Signal:
    logits = torch.from_numpy(generator.normal(size=(tokens, theirs)) * 2).log_softmax(-1)
    kept = logits.topk(k)
    answer = kept.indices[:, 0].int().numpy()
    tail = np.maximum(1 - np.exp(kept.values.half().float().numpy()).sum(1), 0)
    return Signal(answer, kept.indices.int().numpy(), kept.values.half().numpy(), tail.astype(np.float32))


def same_tokens(signal: Signal, vocabulary: int) -> Alignment:
    """Every token stands where the teacher's stood, and means the same."""
    count = len(signal.answer)
    at, matched = np.arange(count, dtype=np.int32), np.ones(count, np.bool_)
    return Alignment(signal.answer, np.array([0, count]), at, matched, np.arange(vocabulary, dtype=np.int32))


def some_tokens(signal: Signal, generator: np.random.Generator) -> Alignment:
    """Two thirds of the tokens are the student's, two of them are one; a third of the rows is of each kind."""
    token_map = np.where(generator.random(THEIRS) < 2 / 3, generator.permutation(THEIRS) % VOCABULARY, -1)
    token_map[signal.ids[0, 1]] = token_map[signal.ids[0, 0]] = 3
    at = np.where(generator.random(TOKENS) < 2 / 3, np.arange(TOKENS), NONE)
    matched = (at != NONE) & (generator.random(TOKENS) < 2 / 3)
    at[0], matched[0] = 0, True
    answer = np.where(matched, token_map[signal.answer], 5)
    answer = np.where(answer < 0, 5, answer).astype(np.int32)
    return Alignment(answer, np.array([0, TOKENS]), at.astype(np.int32), matched, token_map.astype(np.int32))


def tensors(said: Translated, answer: Any, vocabulary: int, weights: Tensor) -> Aligned:
    names = "ids", "logprobs", "live", "tail", "matched", "ranked", "ranks", "rest"
    shared = torch.zeros(vocabulary, dtype=torch.bool).index_fill_(0, torch.from_numpy(said.shared), True)
    parts = {name: torch.from_numpy(getattr(said, name)) for name in names}
    return Aligned(**parts, answer=torch.from_numpy(answer).long(), shared=shared, weights=weights)


def plain(signal: Signal, found: Alignment, logits: Tensor, weights: Tensor, by_rank: Tensor) -> tuple[Tensor, Tensor]:
    """Return (divergence, ULD), token by token, as the words say it."""
    named, ranked = logits.new_zeros(()), logits.new_zeros(())
    shared = {int(token) for token in found.token_map if token >= 0}
    for row, log_q in enumerate(logits.log_softmax(-1)):
        at, q = int(found.theirs[row]), log_q.exp()
        probabilities = np.exp(signal.logprobs[at].astype(np.float64))
        mapped = found.token_map[signal.ids[at]]
        kept = {int(token): float(probabilities[mapped == token].sum()) for token in set(mapped[mapped >= 0].tolist())}
        p, theirs = torch.tensor(sorted(probabilities, reverse=True)), log_q.exp()
        if found.matched[row] and kept:
            rest = torch.stack([q[token] for token in range(len(q)) if token not in kept]).sum()
            outcomes = torch.stack([*(q[token] for token in kept), rest])
            of_p = torch.tensor([*kept.values(), float(signal.tail[at]) + float(probabilities[mapped < 0].sum())])
            of_p = of_p.double() / of_p.sum()
            named = named + weights[row] * (of_p * (of_p.log() - outcomes.log())).sum()
            p = torch.tensor(sorted(probabilities[mapped < 0], reverse=True), dtype=torch.float64)
            theirs = torch.stack([q[token] for token in range(len(q)) if token not in shared])
        else:
            named = named - weights[row] * log_q[int(found.answers[row])]
        if at == NONE:
            continue
        ordered = theirs.sort(descending=True).values
        difference = (ordered[: len(p)] - p[: len(ordered)]).abs().sum() + p[len(ordered) :].sum()
        if not (found.matched[row] and kept):
            difference = difference + (ordered[len(p) :].sum() - float(signal.tail[at])).abs()
        ranked = ranked + by_rank[row] * difference
    return named, ranked


def inputs(tokens: int = TOKENS, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, head = torch.randn(tokens, WIDTH).double(), torch.randn(vocabulary, WIDTH).double()
    return hidden.requires_grad_(), head.requires_grad_(), torch.rand(tokens).double(), torch.rand(tokens).double()


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_value_and_gradient_are_those_of_plain_torch_in_float64(softcap: float | None) -> None:
    generator = np.random.default_rng(1)
    signal = made_up(generator)
    found = some_tokens(signal, generator)
    said = translated(signal, np.array([TOKENS]), found, [0])
    assert 5 < said.matched.sum() < 30
    assert (said.ranks[said.matched] > 0).any()
    hidden, head, weights, by_rank = inputs()
    teacher = tensors(said, found.answers, VOCABULARY, by_rank)
    loss = losses(hidden, Head(head, softcap=softcap), teacher, divergence_weights=weights,
                  targets=torch.from_numpy(found.answers).long(), target_weights=0.3 * weights)  # fmt: skip
    loss.total.backward()  # type: ignore[no-untyped-call]
    got = hidden.grad, head.grad
    hidden.grad = head.grad = None
    logits = hidden @ head.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    named, ranked = plain(signal, found, logits, weights, by_rank)
    entropy = torch.nn.functional.cross_entropy(logits, torch.from_numpy(found.answers).long(), reduction="none")
    (named + ranked + (0.3 * weights * entropy).sum()).backward()
    # The signal's own probabilities are float32.
    assert loss.divergence.item() == pytest.approx(named.item(), rel=1e-6)
    assert loss.uld.item() == pytest.approx(ranked.item(), rel=1e-6)
    for mine, theirs in zip(got, (hidden.grad, head.grad), strict=True):
        assert mine is not None
        assert theirs is not None
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_gradient_is_the_slope_of_the_value_for_every_divergence(kind: Divergence) -> None:
    generator = np.random.default_rng(2)
    signal = made_up(generator)
    found = some_tokens(signal, generator)
    said = translated(signal, np.array([TOKENS]), found, [0])
    hidden, head, weights, by_rank = inputs()
    teacher = tensors(said, found.answers, VOCABULARY, by_rank)

    def value(states: Tensor) -> Tensor:
        return losses(states, Head(head.detach()), teacher, divergence_weights=weights, kind=kind).total

    value(hidden).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    torch.manual_seed(3)
    for _ in range(5):
        step = torch.randn_like(hidden) * 1e-7
        with torch.no_grad():
            slope = (value(hidden + step) - value(hidden - step)) / 2
        if kind == "adaptive_kl":  # its weights carry no gradient
            assert torch.isfinite(slope)
        else:
            assert (hidden.grad * step).sum().item() == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("k", [1, KEPT])
def test_where_every_token_is_the_teachers_it_is_the_loss_of_one_tokenizer(kind: Divergence, k: int) -> None:
    signal = made_up(np.random.default_rng(4), k=k, theirs=VOCABULARY)
    said = translated(signal, np.array([TOKENS]), same_tokens(signal, VOCABULARY), [0])
    assert said.matched.all()
    assert said.live.all()
    assert not said.ranks.any()
    hidden, head, weights, by_rank = inputs()
    one = TopK(*(torch.from_numpy(part) for part in (signal.ids.astype(np.int64), signal.logprobs.astype(np.float32))),
               torch.from_numpy(signal.tail))  # fmt: skip
    found = []
    for teacher in (one, tensors(said, signal.answer, VOCABULARY, by_rank)):
        hidden.grad = head.grad = None
        loss = losses(hidden, Head(head), teacher, divergence_weights=weights, kind=kind)
        loss.total.backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        assert head.grad is not None
        found.append((loss.divergence.item(), hidden.grad.clone(), head.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for one_gradient, other in zip(found[0][1:], found[1][1:], strict=True):
        assert (one_gradient - other).norm() <= 1e-12 * one_gradient.norm()


def test_a_student_of_fewer_tokens_than_are_kept_has_a_finite_loss() -> None:
    """Each of its tokens may be among the kept ones: nothing is left for the rest."""
    signal = made_up(np.random.default_rng(5), k=20, theirs=THEIRS)
    token_map = np.where(np.arange(THEIRS) < 4, np.arange(THEIRS), -1).astype(np.int32)
    matched = signal.answer < 4
    answers = np.where(matched, signal.answer, 0).astype(np.int32)
    found = Alignment(answers, np.array([0, TOKENS]), np.arange(TOKENS, dtype=np.int32), matched, token_map)
    said = translated(signal, np.array([TOKENS]), found, [0])
    assert (said.live.sum(1) == 4).any()
    hidden, head, weights, by_rank = inputs(vocabulary=4)
    for kind in FORMULAS:
        hidden.grad = None
        loss = losses(hidden, Head(head), tensors(said, answers, 4, by_rank), divergence_weights=weights, kind=kind)
        loss.total.backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        assert torch.isfinite(hidden.grad).all()
        assert loss.total.isfinite()


def test_sums_do_not_depend_on_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill import divergence

    generator = np.random.default_rng(6)
    signal = made_up(generator)
    found = some_tokens(signal, generator)
    said = translated(signal, np.array([TOKENS]), found, [0])
    hidden, head, weights, by_rank = inputs()
    teacher = tensors(said, found.answers, VOCABULARY, by_rank)
    whole = losses(hidden, Head(head), teacher, divergence_weights=weights)
    monkeypatch.setattr(divergence, "TILE", 7)
    parts = losses(hidden, Head(head), teacher, divergence_weights=weights)
    assert whole.uld.item() == pytest.approx(parts.uld.item(), rel=1e-12)
    assert whole.total.item() == pytest.approx(parts.total.item(), rel=1e-12)


def test_tokens_that_the_student_lacks_pull_at_none_of_those_that_both_have() -> None:
    """The student has no token of its own to set against them."""
    signal = made_up(np.random.default_rng(7), k=20)
    token_map = np.where(np.arange(THEIRS) < VOCABULARY, np.arange(THEIRS), -1).astype(np.int32)
    matched = signal.answer < VOCABULARY
    answers = np.where(matched, signal.answer, 0).astype(np.int32)
    theirs = np.where(matched, np.arange(TOKENS), NONE).astype(np.int32)
    said = translated(
        signal, np.array([TOKENS]), Alignment(answers, np.array([0, TOKENS]), theirs, matched, token_map), [0]
    )
    assert (said.ranks[said.matched] > 1).any()
    hidden, head, weights, by_rank = inputs()
    found = []
    for factor in (0.0, 1.0):
        hidden.grad = None
        teacher = tensors(said, answers, VOCABULARY, factor * by_rank)
        losses(hidden, Head(head), teacher, divergence_weights=weights).total.backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        found.append(hidden.grad.clone())
    torch.testing.assert_close(found[0], found[1])
