"""python -m benchmarks.gpu [--out DIR] [--tokens N]

One CUDA device: loss and gradients against plain torch in float64 first (benchmarks/gpu_check.py), then tokens a
second, peak memory and model-FLOP utilisation of the loss alone and of the whole step of a 0.6B student with a
vocabulary of 152k (random weights, bf16), beside a compiled loss over whole logits and TRL's and Liger's where they are
installed. Writes gpu.json and gpu.md to --out. Exits 1 when ours is wrong or did not run; without a CUDA device it says
so and exits 0.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check import PARTS, Check, checks
from benchmarks.gpu_steps import Size, stepper
from benchmarks.losses import CONTENDERS, Loss
from benchmarks.machine import machine
from distill.settings import LossKernel

STUDENT, TEACHER, VOCABULARY = 1024, 2560, 152_000  # widths of a 0.6B student and a 4B teacher
KINDS = "forward_kl", "jensen_shannon"
KERNELS: list[LossKernel] = ["torch", "triton"] if find_spec("triton") else ["torch"]
OURS = ["ours", "ours, triton"][: len(KERNELS)]
DENSE_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}  # bf16, from the vendor's data sheets


def timed(once: Callable[[], object], rounds: int = 10) -> dict[str, float]:
    """Return milliseconds (median) and peak memory above what was there before [MB]."""
    for _ in range(3):
        once()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    spans = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        once()
        end.record()
        torch.cuda.synchronize()
        spans.append(start.elapsed_time(end))
    extra = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {"ms": sorted(spans)[len(spans) // 2], "extra_mb": extra}


def recorded(
    name: str, kind: str, tokens: int, flops: float, peak: float | None, make: Callable[[], Callable[[], object]]
) -> dict[str, Any]:
    """Return the record of one contender; one that does not run here says why."""
    record: dict[str, Any] = {"divergence": kind, "contender": name, "tokens": tokens}
    try:
        found = timed(make())
    except (RuntimeError, ImportError, TypeError) as error:  # out of memory is the first
        return {**record, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
    finally:
        torch.cuda.empty_cache()
    mfu = flops / found["ms"] * 1000 / peak if peak else None
    return {**record, **found, "tokens_per_second": tokens / found["ms"] * 1000, "mfu": mfu}


def losses_alone(tokens: int, peak: float | None) -> list[dict[str, Any]]:
    """Return one record a contender and divergence: loss and gradients from hidden states."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    given = (
        normal(tokens, STUDENT).requires_grad_(),
        (normal(VOCABULARY, STUDENT) / 32).requires_grad_(),
        normal(tokens, TEACHER),
        normal(VOCABULARY, TEACHER) / 50,
    )

    def learned(loss: Loss) -> Callable[[], object]:
        def once() -> None:
            given[0].grad = given[1].grad = None
            loss(*given).backward()  # type: ignore[no-untyped-call]

        return once

    records = []
    for kind in KINDS:
        for name in (*OURS, "ours, top 64", "naive", "compiled", "TRL", "Liger"):
            teacher = 0 if name == "ours, top 64" else TEACHER
            flops = 2 * tokens * VOCABULARY * (3 * STUDENT + teacher)
            make = partial(lambda name, kind: learned(CONTENDERS[name](kind)), name, kind)
            records.append(recorded(name, kind, tokens, flops, peak, make))
    return records


def whole_steps(peak: float | None) -> list[dict[str, Any]]:
    """Return one record a contender and divergence: the step of a 0.6B student."""
    size = Size()
    return [
        recorded(
            name, kind, size.rows * size.tokens, size.flops, peak,
            partial(lambda name, kind: stepper(CONTENDERS[name](kind), size, "cuda", torch.bfloat16), name, kind),
        )
        for kind in KINDS
        for name in (*OURS, "compiled", "TRL")
    ]  # fmt: skip


def said(found: list[Check]) -> Iterator[str]:
    """Yield a line a dtype: how far off ours was."""
    for dtype in dict.fromkeys(check.dtype for check in found):
        part, worst = max(
            ((part, check) for check in found if check.dtype == dtype for part in PARTS),
            key=lambda pair: pair[1].errors[pair[0]],
        )
        yield (
            f"Off plain torch in float64, relative to the norm, in {dtype}: at most {worst.errors[part]:.1e} "
            f"({part}, {worst.divergence}, {worst.teacher}; allowed {worst.limits[part]:.1e})."
        )


def complaints(found: list[Check], parts: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return what of ours is wrong or did not run; another's that does not run here is a row of the table alone."""
    wrong = [f"wrong: {check}" for check in found if not check.right]
    return wrong + [
        f"did not run: {title}, {record['divergence']}, {record['contender']}: {record['failed']}"
        for title, records in parts.items()
        for record in records
        if "failed" in record and record["contender"].startswith("ours")
    ]


def markdown(device: str, found: list[Check], parts: dict[str, list[dict[str, Any]]]) -> str:
    """Return the section for RESULTS.md."""
    lines = [f"## One {device}, {datetime.now(UTC):%Y-%m-%d}", "", "    python -m benchmarks.gpu", ""]
    lines += [f"{machine('torch', 'triton')}.", *said(found), ""]
    for title, records in parts.items():
        lines += [f"### {title}", "", "| divergence | contender | tokens | ms | tokens/s | extra MB | MFU |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for record in records:
            if "failed" in record:
                figures = f"{record['failed']} | | | |"
            else:
                mfu = "" if record["mfu"] is None else f"{record['mfu']:.2f}"
                figures = (
                    f"{record['ms']:.1f} | {record['tokens_per_second']:,.0f} | {record['extra_mb']:.0f} | {mfu} |"
                )
            lines.append(f"| {record['divergence']} | {record['contender']} | {record['tokens']:,} | {figures}")
        lines.append("")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> int:
    """Check, compare, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for gpu.json and gpu.md")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384], help="sizes [tokens]")
    arguments = parser.parse_args(given)
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device: nothing was measured")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.cuda.get_device_name()
    found = checks("cuda", kernels=KERNELS)
    if wrong := complaints(found, {}):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    peak = next((flops for name, flops in DENSE_FLOPS.items() if name in device), None)
    parts = {
        "Loss alone": [record for tokens in arguments.tokens for record in losses_alone(tokens, peak)],
        "Whole step of a 0.6B student": whole_steps(peak),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"device": device, "checks": [check._asdict() for check in found], "records": parts}
    (arguments.out / "gpu.json").write_text(json.dumps(report, indent=1))
    (arguments.out / "gpu.md").write_text(text := markdown(device, found, parts))
    print(text)
    if failed := complaints(found, parts):
        print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
