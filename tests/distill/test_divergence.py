"""The fused losses against plain torch in float64."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.textbook import divergence_of, outcomes
from distill import divergence
from distill.divergence import IGNORED, Head, Hidden, TopK, losses
from distill.errors import InputError
from distill.loss.formulas import FORMULAS
from distill.settings import Divergence

TOKENS, VOCABULARY, WIDTH, TEACHER_WIDTH = 37, 50, 8, 12
KINDS = list(FORMULAS)


class Case(NamedTuple):
    """Inputs of a loss, in float64."""

    hidden: Tensor
    head: Tensor
    states: Tensor
    teacher_head: Tensor
    targets: Tensor
    weights: Tensor
    target_weights: Tensor


def made(tokens: int = TOKENS, vocabulary: int = VOCABULARY, scale: float = 1.0) -> Case:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    targets[::5] = IGNORED
    weights = torch.rand(2, tokens, generator=generator, dtype=torch.float64)
    hidden, head = scale * normal(tokens, WIDTH), normal(vocabulary, WIDTH)
    return Case(
        hidden, head, scale * normal(tokens, TEACHER_WIDTH), normal(vocabulary, TEACHER_WIDTH), targets, *weights
    )


def plain(
    case: Case, kind: Divergence, beta: float, temperature: float, k: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, its gradient to the hidden states, to the head) by autograd over whole logits."""
    hidden, head = case.hidden.clone().requires_grad_(), case.head.clone().requires_grad_()
    logits = hidden @ head.T
    log_q = torch.log_softmax(logits / temperature, -1)
    log_p = torch.log_softmax(case.states @ case.teacher_head.T / temperature, -1)
    if k is not None:
        ids = log_p.topk(k, -1).indices
        log_p, log_q = outcomes(log_p, ids).clamp(min=-87), outcomes(log_q, ids)  # what a signal can hold
    total = (divergence_of(kind, log_p, log_q, beta) * case.weights).sum()
    entropy = F.cross_entropy(logits, case.targets, ignore_index=IGNORED, reduction="none")
    total = total + (entropy * case.target_weights).sum()
    total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return total.detach(), hidden.grad, head.grad


def fused(
    case: Case, kind: Divergence, beta: float, temperature: float, k: int | None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same three by `losses`."""
    hidden, head = (part.to(dtype).requires_grad_() for part in (case.hidden, case.head))
    teacher: TopK | Hidden = Hidden(case.states.to(dtype), Head(case.teacher_head.to(dtype)))
    if k is not None:
        kept, ids = torch.log_softmax(case.states @ case.teacher_head.T, -1).topk(k, -1)
        tail = outcomes(torch.log_softmax(case.states @ case.teacher_head.T, -1), ids)[:, -1].exp()
        teacher = TopK(ids, kept.float(), tail.float())
    found = losses(
        hidden,
        Head(head),
        teacher,
        divergence_weights=case.weights,
        targets=case.targets,
        target_weights=case.target_weights,
        kind=kind,
        beta=beta,
        temperature=temperature,
    )
    found.total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return found.total.detach(), hidden.grad, head.grad


def error(found: Tensor, exact: Tensor) -> float:
    """Relative to the norm."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def near(found: Iterable[Tensor], exact: Iterable[Tensor], limit: float) -> bool:
    """Whether each is; a NaN never is, which max() would pass over."""
    return all(error(a, b) <= limit for a, b in zip(found, exact, strict=True))


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """Have torch fill new buffers with NaN, so that one that is read before it is written shows."""
    import torch.utils.deterministic as deterministic

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@pytest.mark.usefixtures("unwritten_is_nan")
class TestGradients:
    """Value and gradients are those of float64, and nothing is read before it is written."""

    def test_a_new_buffer_is_nan_in_these_tests(self) -> None:
        assert torch.empty(3).isnan().all()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("k", "temperature"), [(None, 1.0), (None, 2.5), (5, 1.0), (1, 1.0)])
    def test_they_are_exact_to_1e_6_in_fp32(self, kind: Divergence, k: int | None, temperature: float) -> None:
        case = made()
        exact, found = plain(case, kind, 0.3, temperature, k), fused(case, kind, 0.3, temperature, k)
        assert near(found, exact, 1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("k", [None, 5])
    def test_they_are_no_worse_than_plain_bf16(self, kind: Divergence, k: int | None) -> None:
        case = Case(*(part.bfloat16().double() if part.is_floating_point() else part for part in made()))
        exact = plain(case, kind, 0.3, 1.0, k)
        narrow = Case(*(part.bfloat16() if part.is_floating_point() else part for part in case))
        naive = plain_bf16(narrow, kind, k)
        found = fused(case, kind, 0.3, 1.0, k, torch.bfloat16)
        assert found[1].dtype == found[2].dtype == torch.bfloat16
        for at in range(3):
            assert error(found[at], exact[at]) <= 1.05 * error(naive[at], exact[at]) + 1e-6

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("k", [None, 5])
    def test_extreme_logits_give_finite_and_exact_ones(self, kind: Divergence, k: int | None) -> None:
        case = made(scale=30.0)  # logits of some hundreds: most probabilities underflow
        exact, found = plain(case, kind, 0.3, 1.0, k), fused(case, kind, 0.3, 1.0, k)
        assert all(torch.isfinite(part).all() for part in found)
        assert near(found, exact, 1e-4)  # a logit of 1,000 is known to 6e-5 in fp32

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("k", [None, 5])
    def test_tiles_and_their_parts_change_nothing(
        self, kind: Divergence, k: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = made(vocabulary=53)
        whole = fused(case, kind, 0.3, 1.0, k, torch.float64)
        for rows, elements in itertools.product((1, 7, 36, 37), (1, 3 * 53, 10**6)):
            monkeypatch.setattr(divergence, "TILE", rows)
            monkeypatch.setattr(divergence, "_CACHED", elements)
            assert near(fused(case, kind, 0.3, 1.0, k, torch.float64), whole, 1e-12)

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_token_has_them(self, kind: Divergence) -> None:
        case = made(tokens=1)._replace(targets=torch.tensor([3]))
        assert near(fused(case, kind, 0.3, 1.0, None), plain(case, kind, 0.3, 1.0, None), 1e-6)

    @pytest.mark.parametrize("k", [None, 5])
    def test_no_token_has_a_loss_and_gradients_of_zero(self, k: int | None) -> None:
        total, of_hidden, of_head = fused(made(tokens=0), "forward_kl", 0.3, 1.0, k)
        assert total == 0
        assert of_hidden.shape == (0, WIDTH)
        assert not of_head.any()

    def test_a_tied_head_gets_those_of_both_its_uses(self) -> None:
        case = made()
        ids = torch.randint(0, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(1))
        table = case.head.float().requires_grad_()
        found = losses(table[ids] * 2, Head(table), None, targets=case.targets)
        found.total.backward()
        exact = case.head.clone().requires_grad_()
        F.cross_entropy(exact[ids] * 2 @ exact.T, case.targets, ignore_index=IGNORED, reduction="sum").backward()
        assert table.grad is not None
        assert exact.grad is not None
        assert error(table.grad, exact.grad) <= 1e-6

    @pytest.mark.parametrize("kind", KINDS)
    def test_bias_and_capped_logits_have_them(self, kind: Divergence) -> None:
        case, cap = made(), 4.0
        bias = torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64)
        exact = [part.clone().requires_grad_() for part in (case.hidden, case.head, bias)]
        logits = cap * torch.tanh((exact[0] @ exact[1].T + exact[2]) / cap)
        log_p = torch.log_softmax(cap * torch.tanh((case.states @ case.teacher_head.T + bias) / cap), -1)
        divergence_of(kind, log_p, torch.log_softmax(logits, -1), 0.3).sum().backward()
        found = [part.float().requires_grad_() for part in (case.hidden, case.head, bias)]
        teacher = Hidden(case.states.float(), Head(case.teacher_head.float(), bias.float(), cap))
        losses(found[0], Head(found[1], found[2], cap), teacher, kind=kind, beta=0.3).total.backward()
        for got, wanted in zip(found, exact, strict=True):
            assert got.grad is not None
            assert wanted.grad is not None
            assert error(got.grad, wanted.grad) <= 1e-6

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("k", [None, 5])
    def test_tokens_that_neither_ever_says_are_as_if_there_were_none(self, kind: Divergence, k: int | None) -> None:
        case = made()
        bias, never = torch.zeros(VOCABULARY + 3), torch.ones(3, WIDTH)
        bias[VOCABULARY:] = float("-inf")
        of_teacher = Head(torch.cat([case.teacher_head.float(), torch.ones(3, TEACHER_WIDTH)]), bias)
        teacher: TopK | Hidden = Hidden(case.states.float(), of_teacher)
        if k is not None:
            kept, ids = (log_p := torch.log_softmax(case.states @ case.teacher_head.T, -1)).topk(k, -1)
            teacher = TopK(ids, kept.float(), outcomes(log_p, ids)[:, -1].exp().float())
        hidden, head = (part.float().requires_grad_() for part in (case.hidden, torch.cat([case.head, never])))
        bias = bias.clone().requires_grad_()
        found = losses(
            hidden, Head(head, bias), teacher, divergence_weights=case.weights, targets=case.targets,
            target_weights=case.target_weights, kind=kind, beta=0.3,
        )  # fmt: skip
        found.total.backward()
        assert hidden.grad is not None
        assert head.grad is not None
        assert bias.grad is not None
        assert near((found.total.detach(), hidden.grad, head.grad[:VOCABULARY]), plain(case, kind, 0.3, 1.0, k), 1e-6)
        assert not head.grad[VOCABULARY:].any()
        assert not bias.grad[VOCABULARY:].any()

    def test_they_are_scaled_by_what_comes_back(self) -> None:
        case = made()
        hidden = case.hidden.float().requires_grad_()
        (3 * losses(hidden, Head(case.head.float()), None, targets=case.targets).total).backward()
        assert hidden.grad is not None
        exact = case.hidden.clone().requires_grad_()
        F.cross_entropy(exact @ case.head.T, case.targets, ignore_index=IGNORED, reduction="sum").backward()
        assert exact.grad is not None
        assert error(hidden.grad, 3 * exact.grad) <= 1e-6

    def test_they_are_handed_on_once(self) -> None:
        hidden = made().hidden.float().requires_grad_()
        found = losses(hidden, Head(made().head.float()), None, targets=made().targets)
        found.total.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="handed on already"):
            found.total.backward()

    def test_without_a_gradient_there_is_still_a_loss(self) -> None:
        case = made()
        with torch.no_grad():
            found = losses(case.hidden, Head(case.head), None, targets=case.targets)
        exact = F.cross_entropy(case.hidden @ case.head.T, case.targets, ignore_index=IGNORED, reduction="sum")
        torch.testing.assert_close(found.total, exact)


class TestTopK:
    """What the teacher did not keep counts as one more outcome."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_with_the_whole_vocabulary_kept_it_is_the_full_divergence(self, kind: Divergence) -> None:
        case = made()
        assert near(fused(case, kind, 0.3, 1.0, VOCABULARY), plain(case, kind, 0.3, 1.0, None), 1e-6)

    def test_it_is_zero_when_the_student_is_the_teacher(self) -> None:
        case = made()
        log_p = torch.log_softmax(case.hidden @ case.head.T, -1)
        kept, ids = log_p.topk(5, -1)
        teacher = TopK(ids, kept, outcomes(log_p, ids)[:, -1].exp())
        found = losses(case.hidden, Head(case.head), teacher)
        assert abs(float(found.divergence)) <= 1e-9

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_student_that_underflows_in_the_tail_has_a_finite_gradient(self, kind: Divergence) -> None:
        hidden = torch.tensor([[300.0]], requires_grad=True)
        head = torch.tensor([[1.0], [0.5], [-1.0], [-1.1]])
        teacher = TopK(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.3]]).log(), torch.tensor([0.2]))
        losses(hidden, Head(head), teacher, kind=kind, beta=0.3).total.backward()
        assert hidden.grad is not None
        assert torch.isfinite(hidden.grad).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_teacher_without_a_tail_gives_a_finite_loss(self, kind: Divergence) -> None:
        hidden = torch.zeros(1, 3, requires_grad=True)
        teacher = TopK(torch.tensor([[2, 1]]), torch.tensor([[0.0, -65504.0]]), torch.zeros(1))
        found = losses(hidden, Head(torch.eye(4, 3)), teacher, kind=kind, beta=0.3)
        found.total.backward()
        assert torch.isfinite(found.total)
        assert hidden.grad is not None
        assert torch.isfinite(hidden.grad).all()


class TestMemory:
    """[tokens, vocabulary] never exists."""

    def test_no_tensor_is_larger_than_a_tile_or_a_gradient(self) -> None:
        from torch.utils._python_dispatch import TorchDispatchMode

        largest = 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                nonlocal largest
                found = function(*args, **(kwargs or {}))
                for part in found if isinstance(found, tuple | list) else [found]:
                    if isinstance(part, Tensor):
                        largest = max(largest, part.untyped_storage().size() // part.element_size())
                return found

        hidden, head = torch.zeros(4096, 4, requires_grad=True), torch.ones(1000, 4, requires_grad=True)
        with Watch():
            losses(hidden, Head(head), Hidden(torch.zeros(4096, 4), Head(torch.ones(1000, 4)))).total.backward()
        assert largest <= divergence.TILE * 1000


class TestRefusals:
    """What cannot be computed is said before anything is."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kind": "forward"}, "divergence 'forward': choose one of forward_kl"),
            ({"kind": "jensen_shannon", "beta": 1.0}, r"beta 1.0 of jensen_shannon"),
            ({"kind": "skewed_forward_kl", "beta": 1.0}, r"beta 1.0 of skewed_forward_kl"),
            ({"temperature": 0.0}, r"temperature 0.0"),
            ({"temperature": 2.0}, r"temperature 2.0 with a teacher's top 2"),
            ({"targets": torch.zeros(4, dtype=torch.int64)}, "not the same number of tokens"),
            (
                {"targets": torch.zeros(3, 1, dtype=torch.int64)},
                r"not the same number of tokens: .*'targets': \(3, 1\)",
            ),
            ({"targets": torch.tensor([0, -1, 2])}, "targets have -1: ids are from 0 to below .* 9, or -100 for none"),
            ({"targets": torch.tensor([0, IGNORED, 9])}, "targets have 9: ids are from 0 to below the vocabulary's 9"),
            ({"divergence_weights": torch.ones(1)}, "not the same number of tokens: .*'divergence_weights': "),
            ({"target_weights": torch.ones(2)}, "not the same number of tokens: .*'target_weights': "),
        ],
    )
    def test_a_setting_that_cannot_be_is_named(self, changes: dict[str, object], message: str) -> None:
        teacher = TopK(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2), torch.zeros(3))
        with pytest.raises(InputError, match=message):
            losses(torch.zeros(3, 4), Head(torch.zeros(9, 4)), teacher, **changes)  # type: ignore[arg-type]

    @pytest.mark.parametrize("token", [-1, IGNORED, 9])
    def test_a_kept_token_that_there_is_not_is_named(self, token: int) -> None:
        teacher = TopK(torch.tensor([[0, 1], [3, token]]), torch.zeros(2, 2), torch.zeros(2))
        with pytest.raises(InputError, match=f"the teacher's kept tokens have {token}: ids are from 0"):
            losses(torch.zeros(2, 4), Head(torch.zeros(9, 4)), teacher)

    @pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
    def test_states_and_a_head_of_two_dtypes_are_named(self, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
        hidden, weight = torch.zeros(3, 4, dtype=dtypes[0]), torch.zeros(9, 4, dtype=dtypes[1])
        with pytest.raises(InputError, match=f"hidden states in {dtypes[0]} and a head in {dtypes[1]}"):
            losses(hidden, Head(weight), None, targets=torch.zeros(3, dtype=torch.int64))

    def test_another_vocabulary_is_named(self) -> None:
        teacher = Hidden(torch.zeros(3, 4), Head(torch.zeros(10, 4)))
        with pytest.raises(InputError, match="teacher's head has 10 tokens, the student's 9"):
            losses(torch.zeros(3, 4), Head(torch.zeros(9, 4)), teacher)


def plain_bf16(case: Case, kind: Divergence, k: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The usual way: logits in bf16, the loss over them in fp32, gradients by autograd."""
    hidden, head = case.hidden.clone().requires_grad_(), case.head.clone().requires_grad_()
    logits = (hidden @ head.T).float()
    log_q = torch.log_softmax(logits, -1)
    log_p = torch.log_softmax((case.states @ case.teacher_head.T).float(), -1)
    if k is not None:
        exact = torch.log_softmax(case.states.double() @ case.teacher_head.double().T, -1)
        ids = exact.topk(k, -1).indices
        log_p, log_q = outcomes(exact, ids).float(), outcomes(log_q, ids)
    total = (divergence_of(kind, log_p, log_q, 0.3) * case.weights.float()).sum()
    entropy = F.cross_entropy(logits, case.targets, ignore_index=IGNORED, reduction="none")
    total = total + (entropy * case.target_weights.float()).sum()
    total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return total.detach(), hidden.grad, head.grad


@pytest.mark.parametrize("kinds", [("skewed_forward_kl", "forward_kl"), ("skewed_reverse_kl", "reverse_kl")])
def test_no_skew_is_the_plain_divergence_even_where_a_probability_underflows(
    kinds: tuple[Divergence, Divergence],
) -> None:
    torch.manual_seed(0)
    states, weight, others = torch.randn(5, 8), torch.randn(30, 8) * 60, torch.randn(30, 8) * 60
    found = []
    for kind in kinds:
        hidden = states.clone().requires_grad_()
        made = losses(hidden, Head(weight), Hidden(states.flip(0), Head(others)), kind=kind, beta=0.0)
        made.total.backward()
        found.append((made.divergence, hidden.grad))
    assert found[0][0] > 500, "no tile has a logarithm of what is cut off"
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
