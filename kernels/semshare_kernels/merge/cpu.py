"""`merge_states` on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from semshare_kernels.native import merge_parts


def merge_states(
    part_out: Tensor, part_lse: Tensor, offsets: Tensor, parts: Tensor
) -> tuple[Tensor, Tensor]:
    """See `semshare_kernels.merge.merge_states`."""
    n_rows, (_, heads, d) = len(offsets) - 1, part_out.shape
    out = part_out.new_zeros((n_rows, heads, d), dtype=torch.float32)
    lse = part_lse.new_empty((n_rows, heads))
    if merge_parts(part_out, part_lse, offsets, parts, out, lse):
        return out, lse
    row = torch.repeat_interleave(torch.arange(n_rows), offsets.diff())
    grouped = part_lse.index_select(0, parts)
    top = torch.full_like(lse, -torch.inf)
    top.scatter_reduce_(0, row[:, None].expand(-1, heads), grouped, "amax")
    shift = torch.where(top == -torch.inf, 0.0, top)
    weight = torch.exp(grouped - shift.index_select(0, row))
    total = torch.zeros_like(top).index_add_(0, row, weight)
    weight /= torch.where(total == 0.0, 1.0, total).index_select(0, row)
    out.index_add_(0, row, part_out.index_select(0, parts).float() * weight[..., None])
    return out, shift + total.log()


def merge_into(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """`merge_states` of two, in place, in two passes; a row of `part` has seen some key."""
    out.lerp_(part.float(), torch.sigmoid(part_lse - lse)[..., None])
    torch.logaddexp(lse, part_lse, out=lse)
