"""Merges results of attention over disjoint sets of keys."""

from __future__ import annotations

from torch import Tensor

from semshare_kernels.merge import reference
from semshare_kernels.merge.cpu import merge_states as _merge_on_cpu

__all__ = ["merge_states", "reference"]


def merge_states(
    part_out: Tensor, part_lse: Tensor, offsets: Tensor, parts: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over a union of disjoint key sets, from each set's result.

    Args:
        part_out: `[n_parts, heads, d]`.
        part_lse: `[n_parts, heads]` float32, natural log of the sum of exponentials; −inf for a
            row that saw no key.
        offsets: `[n_rows + 1]` int64.
        parts: `[offsets[-1]]` int64; row i is merged from parts[offsets[i]:offsets[i + 1]].

    Returns:
        out `[n_rows, heads, d]` float32 and lse `[n_rows, heads]` of the unions (Hydragen, arXiv
        2402.05099, eq. 5). A row that saw no key in any set is zero with lse −inf.

    """
    if part_out.is_cuda:
        from semshare_kernels.merge.gpu import merge_states as merge_on_gpu  # noqa: PLC0415

        return merge_on_gpu(part_out, part_lse, offsets, parts)
    return _merge_on_cpu(part_out, part_lse, offsets, parts)
