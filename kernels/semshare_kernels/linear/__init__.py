"""y = x wᵀ + b for few rows of x: the matrix products of a decode step of a batch.

They should take as long as reading the weights once. torch's take up to twice that on a CPU, since
its product is made for many rows and packs the weight anew in each call (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from semshare_kernels.linear import cpu, reference

__all__ = ["few_rows_linear", "few_rows_linears", "reference"]


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, faster for few rows on a CPU.

    A row's results don't depend on the other rows, to the last bit, wherever the loop in C runs:
    each is a sum over k in ascending order, in float32. It runs for 4 to 64 rows of contiguous
    float32 or bfloat16; all else, and 16 bits where the CPU has matrix instructions for them, is
    torch's.

    Args:
        x: `[..., k]`.
        weight: `[n, k]`, as `torch.nn.Linear` keeps it.
        bias: `[n]`.

    Returns:
        `[..., n]` in `x`'s dtype.

    Raises:
        MemoryError: no memory for a transposed copy of `x`.

    """
    if cpu.runs_in_c(x, weight, bias):
        return cpu.few_rows_linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def few_rows_linears(x: Tensor) -> AbstractContextManager[object]:
    """Within it, a model's own `torch.nn.Linear` modules compute by `few_rows_linear`.

    It may be entered again and again. Around functions other than projections it only costs time.

    Args:
        x: `[..., hidden]` what the model's layers are called with; where torch's products are taken
            for its rows, dtype or device anyway, nothing is taken over, and nothing costs time.

    """
    return _FewRowsLinears() if cpu.takes(x) else nullcontext()


class _FewRowsLinears(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear:
            func = few_rows_linear
        return func(*args, **(kwargs or {}))
