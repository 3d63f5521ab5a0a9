"""The fastest float32 matrix product of this machine that is still float32.

On some CPUs torch's default library runs at half the speed of oneDNN, which
`torch.set_float32_matmul_precision("medium")` selects; on others the same flag means bfloat16 or
TF32. So it is measured, speed and error, before it is used.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class MatmulChoice:
    """What was measured: seconds and relative error of both settings, and the one taken."""

    precision: str
    seconds_default: float
    seconds_medium: float
    error_default: float
    error_medium: float
    seconds_bfloat16: float
    """Of the same product in bfloat16."""

    @property
    def halves_pay(self) -> bool:
        """Whether products in bfloat16 take less than three quarters of the time of the choice."""
        taken = self.seconds_medium if self.precision == "medium" else self.seconds_default
        return self.seconds_bfloat16 < 0.75 * taken


def calibrate(*, rows: int = 2048, d_in: int = 256, d_out: int = 1024) -> MatmulChoice:
    """Time one linear layer under both settings and compare both with float64.

    "medium" is taken if it is at least a tenth faster and at most three times as far from float64
    as the default, whose own error is a few units of rounding.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, d_in, generator=generator)
    weight = torch.randn(d_out, d_in, generator=generator)
    exact = F.linear(x.double(), weight.double())
    before = torch.get_float32_matmul_precision()
    seconds, errors = {}, {}
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            product = F.linear(x, weight)
            errors[precision] = float((product - exact).norm() / exact.norm())
            seconds[precision] = _least_seconds(x, weight)
    finally:
        torch.set_float32_matmul_precision(before)
    medium = (
        seconds["medium"] < 0.9 * seconds["highest"] and errors["medium"] <= 3 * errors["highest"]
    )
    return MatmulChoice(
        "medium" if medium else "highest",
        seconds["highest"],
        seconds["medium"],
        errors["highest"],
        errors["medium"],
        _least_seconds(x.bfloat16(), weight.bfloat16()),
    )


def _least_seconds(x: Tensor, weight: Tensor) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def fastest_float32_matmul() -> Generator[MatmulChoice]:
    """Use the faster setting for the length of a `with` block (CPU only; a GPU keeps its own)."""
    before = torch.get_float32_matmul_precision()
    choice = calibrate()
    torch.set_float32_matmul_precision(choice.precision)
    try:
        yield choice
    finally:
        torch.set_float32_matmul_precision(before)
