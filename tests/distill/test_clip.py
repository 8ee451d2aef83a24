"""The norm of a gradient, and what becomes of one that is too long."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh

from distill.training.sharding import clip, mesh_of

SHAPES = (), (5,), (1,), (0,), (7, 300), (1, 4), (0, 3), (3, 0), (4, 5, 6), (1, 2, 3)
SHARDED = [shape for shape in SHAPES if shape and 0 not in shape]  # FSDP2 takes no others; some are one row alone
TWO = """
import json, sys
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from distill.training.sharding import clip, mesh_of
from tests.distill.test_clip import SHARDED, Weights, grown
dist.init_process_group("gloo")
mesh = mesh_of(torch.device("cpu"), int(sys.argv[1]))
model = Weights(SHARDED)
fully_shard(model, mesh=mesh)
sum((p * g).sum() for p, g in zip(model(), grown(SHARDED), strict=True)).backward()
found = [clip(model.parameters(), limit, mesh) for limit in (1e9, 2.0, 1e9)]
if dist.get_rank() == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""


class Weights(nn.Module):
    """Some weights, which its forward returns."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in shapes])

    def forward(self) -> list[Tensor]:
        return list(self.weights)


def grown(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Gradients of these shapes, of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    return [10.0 ** (at % 3 - 1) * torch.randn(shape, generator=generator) for at, shape in enumerate(shapes)]


def norm(gradients: list[Tensor]) -> float:
    """In float64, of all values together."""
    return float(torch.cat([part.detach().double().flatten() for part in gradients]).norm())


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield mesh_of(torch.device("cpu"), 1)
    dist.destroy_process_group()


@pytest.fixture
def weights() -> list[nn.Parameter]:
    """Weights of all shapes with gradients, and one without."""
    made = [nn.Parameter(torch.ones(shape)) for shape in (*SHAPES, (3, 3))]
    for weight, gradient in zip(made, grown(list(SHAPES)), strict=False):
        weight.grad = gradient
    return made


def gradients_of(weights: list[nn.Parameter]) -> list[Tensor]:
    return [weight.grad.clone() for weight in weights if weight.grad is not None]


@pytest.mark.parametrize("share", [0.01, 0.999])
def test_a_gradient_that_is_too_long_is_as_long_as_it_may_be_and_points_where_it_did(
    share: float, weights: list[nn.Parameter], mesh: DeviceMesh
) -> None:
    before = gradients_of(weights)
    limit = share * norm(before)
    assert clip(weights, limit, mesh) == pytest.approx(norm(before), rel=1e-6)
    after = gradients_of(weights)
    assert norm(after) == pytest.approx(limit, rel=1e-6)
    for now, was in zip(after, before, strict=True):
        torch.testing.assert_close(now, was * share, rtol=1e-6, atol=0)
    assert weights[-1].grad is None


def test_a_gradient_that_is_short_enough_is_left_as_it_is(weights: list[nn.Parameter], mesh: DeviceMesh) -> None:
    before = gradients_of(weights)
    assert clip(weights, 1.001 * norm(before), mesh) == pytest.approx(norm(before), rel=1e-6)
    assert all(torch.equal(now, was) for now, was in zip(gradients_of(weights), before, strict=True))


def test_the_norm_of_a_large_matrix_is_as_exact(mesh: DeviceMesh) -> None:
    weight = nn.Parameter(torch.ones(40, 50_000))
    weight.grad = torch.randn(40, 50_000, generator=torch.Generator().manual_seed(1))
    assert clip([weight], 1e9, mesh) == pytest.approx(norm([weight.grad]), rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_has_no_finite_norm(value: float, mesh: DeviceMesh) -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.tensor([[1.0, 1.0], [1.0, value], [1.0, 1.0]])
    assert not torch.tensor(clip([weight], 1.0, mesh)).isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_two_processes_have_the_norm_of_one_however_weights_are_dealt(replicas: int, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    elastic = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*elastic, str(tmp_path / "two.py"), str(replicas)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    exact = norm(grown(SHARDED))
    assert json.loads(done.stdout) == pytest.approx([exact, exact, 2.0], rel=1e-6)
