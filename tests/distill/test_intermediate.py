"""Hidden states and attention maps of the teacher as further terms."""

import pytest
import torch

from distill.errors import InputError
from distill.loss.intermediate import Projections, attention_loss, hidden_loss, layer_map


class TestLayerMap:
    """Which layer of the student learns from which one of the teacher."""

    @pytest.mark.parametrize(
        ("text", "pairs"),
        [
            ("last", [(4, 12)]),
            ("uniform", [(1, 3), (2, 6), (3, 9), (4, 12)]),
            ("1:2, last:last", [(1, 2), (4, 12)]),
        ],
    )
    def test_it_is_read(self, text: str, pairs: list[tuple[int, int]]) -> None:
        assert layer_map(text, 4, 12) == pairs

    def test_uniform_of_a_deeper_student_names_layers_that_are_there(self) -> None:
        assert layer_map("uniform", 8, 2)[0] == (1, 1)
        assert layer_map("uniform", 8, 2)[-1] == (8, 2)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("5:1", "'5' is no layer of the student, which has 1 to 4"),
            ("1:0", "'0' is no layer of the teacher, which has 1 to 12"),
            ("1-2", "'1-2' is no pair"),
            ("1:2,1:3", "names a layer of the student twice"),
        ],
    )
    def test_a_layer_that_is_not_there_is_named(self, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            layer_map(text, 4, 12)


class TestHidden:
    """The states' direction counts, not their scale."""

    def test_it_is_zero_for_the_same_direction(self) -> None:
        states = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
        assert float(hidden_loss([3 * states], [states], torch.ones(7))) < 1e-5

    def test_it_is_two_a_token_for_states_that_have_nothing_in_common(self) -> None:
        loss = hidden_loss([torch.tensor([[1.0, 0.0]])], [torch.tensor([[0.0, 5.0]])], torch.tensor([0.5]))
        torch.testing.assert_close(loss, torch.tensor(1.0), rtol=1e-5, atol=1e-5)

    def test_a_projection_learns_a_teacher_of_another_width(self) -> None:
        torch.manual_seed(0)
        states = torch.randn(64, 4)
        teacher = [states @ torch.randn(4, 9) for _ in range(2)]
        projections = Projections(2, 4, 9)
        optimizer = torch.optim.Adam(projections.parameters(), lr=0.05)
        losses = []
        for _ in range(200):
            loss = hidden_loss(projections([states, states]), teacher, torch.full((64,), 1 / 64))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        assert losses[-1] < 0.01 * losses[0]

    def test_states_of_one_width_need_no_projection(self) -> None:
        assert not list(Projections(3, 8, 8).parameters())


class TestAttention:
    """Where the student looks."""

    @staticmethod
    def maps(heads: int, seed: int) -> torch.Tensor:
        scores = torch.randn(2, heads, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf")).softmax(-1)

    def test_it_is_the_mean_of_the_heads_divergences(self) -> None:
        student, teacher, weights = self.maps(3, 0), self.maps(3, 1), torch.rand(2, 5)
        p, q = teacher, student
        exact = torch.where(p > 0, p * (p.log() - q.log()), 0).sum(-1).mean(1)
        found = attention_loss([student], [teacher], weights)
        torch.testing.assert_close(found.double(), (exact * weights).sum(), rtol=1e-5, atol=1e-6)

    def test_other_numbers_of_heads_are_compared_by_their_means(self) -> None:
        teacher = self.maps(2, 0)
        assert abs(float(attention_loss([teacher.mean(1, keepdim=True)], [teacher], torch.ones(2, 5)))) < 1e-5

    def test_padding_that_looks_nowhere_counts_nothing(self) -> None:
        student, teacher = self.maps(2, 0), self.maps(2, 0)
        student[0, :, 4] = teacher[0, :, 4] = float("nan")
        weights = torch.ones(2, 5)
        weights[0, 4] = 0
        student.requires_grad_()
        loss = attention_loss([student], [teacher], weights)
        loss.backward()
        assert abs(float(loss)) < 1e-5
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
