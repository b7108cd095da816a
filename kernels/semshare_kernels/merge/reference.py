"""`merge_states` by its definition, a row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_states(
    part_out: Tensor, part_lse: Tensor, offsets: Tensor, parts: Tensor
) -> tuple[Tensor, Tensor]:
    """See `semshare_kernels.merge.merge_states`."""
    n_rows = len(offsets) - 1
    out = torch.zeros((n_rows, *part_out.shape[1:]), dtype=torch.float32)
    lse = torch.full((n_rows, part_out.shape[1]), -torch.inf)
    for row in range(n_rows):
        index = parts[offsets[row] : offsets[row + 1]]
        if len(index) == 0:
            continue
        lse[row] = torch.logsumexp(part_lse[index], dim=0)
        weight = torch.exp(part_lse[index] - torch.nan_to_num(lse[row], neginf=0.0))
        out[row] = (weight[..., None] * part_out[index].float()).sum(dim=0)
    return out, lse
