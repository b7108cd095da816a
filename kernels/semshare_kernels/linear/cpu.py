"""Products of few rows with a weight on the CPU, in C."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semshare_kernels import native
from semshare_kernels.tiles.cpu import multiplies_in_amx

# Rows of which the loop in C is faster than torch, whose products of one to three rows read the
# weight at the memory's speed. linear.c has room for MAX_ROWS.
MIN_ROWS, MAX_ROWS = 4, 64


def takes(x: Tensor) -> bool:
    """Whether products of these rows are faster in the compiled loop, if the weight suits it."""
    return (
        MIN_ROWS <= x.numel() // max(x.shape[-1], 1) <= MAX_ROWS
        and _plain(x, x.dtype)
        and _loop_for(x.dtype) is not None
        and not multiplies_in_amx(x.dtype)
    )


def runs_in_c(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this product is made by the compiled loop: `takes`, and the weight suits it."""
    return (
        takes(x)
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and _plain(weight, x.dtype)
        and (bias is None or (_plain(bias, x.dtype) and bias.shape == weight.shape[:1]))
    )


def _loop_for(dtype: torch.dtype) -> Any:
    """The loop in linear.c; None if there is none for a dtype."""
    loops = native.library()
    if loops is None or dtype not in (torch.float32, torch.bfloat16):
        return None
    return loops.linear_float32 if dtype == torch.float32 else loops.linear_bfloat16


def _plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    return (
        tensor.is_cpu
        and tensor.dtype is dtype
        and tensor.is_contiguous()
        and not (tensor.requires_grad and torch.is_grad_enabled())
    )


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `semshare_kernels.linear.few_rows_linear`; arguments are as `runs_in_c` wants them."""
    loop = _loop_for(x.dtype)
    if loop is None:
        raise RuntimeError(f"no compiled loop for {x.dtype}: ask `runs_in_c` first")
    n, k = weight.shape
    out = torch.empty((*x.shape[:-1], n), dtype=x.dtype)
    at = None if bias is None else bias.data_ptr()
    if loop(x.data_ptr(), weight.data_ptr(), at, out.data_ptr(), x.numel() // k, k, n):
        raise MemoryError(f"no memory for a transposed copy of inputs of {tuple(x.shape)}")
    return out
