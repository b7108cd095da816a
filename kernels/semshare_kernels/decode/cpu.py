"""Shared-prefix decode on the CPU: first each shared node for all its sequences, then the rest.

Node first, the queries of all sequences that read a node are rows of the same matrix products, and
its KV passes through the cache once (ChunkAttention, arXiv 2402.15220; Hydragen, arXiv
2402.05099). Sequence first, what one sequence reads by itself. Partial results are merged by
log-sum-exp.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from semshare_kernels.decode.plan import (
    DecodePlan,
    PrivateKeys,
    SharedNode,
    ShortPrivateKeys,
    sharing_pays,
)
from semshare_kernels.decode.tree import KeyTree
from semshare_kernels.key_table import Index, KeyTable
from semshare_kernels.mixed import cpu as mixed
from semshare_kernels.rotary.rotation import Rotation
from semshare_kernels.shape import AttentionShape

# KV read in the time of a call of the fused kernel, about 30 µs at 10 GB/s.
CALL_BYTES = 300_000
# Keys of its own up to which a sequence is batched with others, padded, instead of called for.
SHORT_KEYS = 128
# Keys of a node that are gathered at once, if they don't lie in a row.
SCRATCH_KEYS = 1024


def plan_for_cpu(
    q_pos: Index, tree: KeyTree, window: int | None, shape: AttentionShape
) -> DecodePlan:
    """A `DecodePlan` of calls; arguments as those of `plan_decode`."""
    sequence, node, shift = tree.links()
    readers = np.bincount(node, minlength=tree.n_nodes)
    is_shared = sharing_pays(readers, np.diff(tree.node_start), shape, call_bytes=CALL_BYTES)
    rows = _Rows()
    shared = [
        part
        for index in np.flatnonzero(is_shared)
        for part in _node(int(index), tree, sequence, node, shift, q_pos, window, shape, rows)
    ]
    own = [
        tree.keys_of(path[~is_shared[path]], shifts[~is_shared[path]])
        for path, shifts in zip(tree.paths, tree.shifts, strict=True)
    ]
    own = [_within(keys, position, window) for keys, position in zip(own, q_pos, strict=True)]
    short = [index for index, keys in enumerate(own) if 0 < len(keys) <= SHORT_KEYS]
    long = [index for index, keys in enumerate(own) if len(keys) > SHORT_KEYS]
    private = []
    turned: list[Index] = []
    n_turned = 0
    for index in long:
        plan = mixed.plan_for_cpu(q_pos[index : index + 1], own[index], window, shape)
        part = slice(n_turned, n_turned + len(plan.turned_shifts))
        wanted = torch.tensor([rows.of(index, int(shift)) for shift in plan.shifts])
        private.append(PrivateKeys(index, plan, wanted, part))
        turned.append(plan.turned_shifts)
        n_turned = part.stop
    batch = None
    if short:
        batch, shifts = _short(short, own, rows, n_turned, shape)
        turned.append(shifts)
    row_sequence, row_shift = rows.arrays()
    return DecodePlan(
        n_sequences=len(q_pos),
        row_sequence=row_sequence,
        row_shift=row_shift,
        turned_shifts=np.concatenate([np.empty(0, np.int64), *turned]),
        shared=tuple(shared),
        private=tuple(private),
        short=batch,
    )


def _within(keys: KeyTable, position: np.int64, window: int | None) -> KeyTable:
    """The keys that a query at `position` sees."""
    if window is None:
        return keys
    return keys.take(np.flatnonzero(position - keys.positions < window))


def _short(
    sequences: list[int], own: list[KeyTable], rows: _Rows, n_turned: int, shape: AttentionShape
) -> tuple[ShortPrivateKeys, Index]:
    """One padded batch of the sequences' own keys, and the shifts by which they are turned."""
    longest = max(len(own[index]) for index in sequences)
    padded = [
        own[index].take(np.minimum(np.arange(longest), len(own[index]) - 1)) for index in sequences
    ]
    shifts = np.concatenate([keys.shifts for keys in padded])
    shifts = shifts if shifts.any() else shifts[:0]
    mask = torch.zeros(len(sequences), 1, 1, longest, dtype=shape.dtype)
    for row, index in enumerate(sequences):
        mask[row, ..., len(own[index]) :] = torch.finfo(shape.dtype).min
    batch = ShortPrivateKeys(
        sequences=torch.tensor(sequences),
        rows=torch.tensor([rows.of(index, 0) for index in sequences]),
        slots=torch.from_numpy(np.concatenate([keys.slots for keys in padded])),
        mask=mask,
        turned=slice(n_turned, n_turned + len(shifts)),
    )
    return batch, shifts


class _Rows:
    """Numbers the pairs of sequence and shift that want a rotated query."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], int] = {}

    def of(self, sequence: int, shift: int) -> int:
        return self._rows.setdefault((sequence, shift), len(self._rows))

    def arrays(self) -> tuple[Index, Index]:
        pairs = np.array(list(self._rows), dtype=np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]


def _node(
    index: int,
    tree: KeyTree,
    sequence: Index,
    node: Index,
    shift: Index,
    q_pos: Index,
    window: int | None,
    shape: AttentionShape,
    rows: _Rows,
) -> list[SharedNode]:
    """A node in parts that can be read at once."""
    links = np.flatnonzero(node == index)
    query_rows = torch.tensor([rows.of(int(sequence[i]), int(shift[i])) for i in links])
    at = q_pos[sequence[links]] - shift[links]  # where the queries stand beside the node's keys
    start, stop = int(tree.node_start[index]), int(tree.node_start[index + 1])
    in_a_row = bool((np.diff(tree.slots[start:stop]) == 1).all())
    step = stop - start if in_a_row else SCRATCH_KEYS
    parts = []
    for first in range(start, stop, step):
        keys = slice(first, min(first + step, stop))
        mask = None
        if window is not None:
            hidden = at[:, None] - tree.stored_at[None, keys] >= window
            if hidden.any():
                mask = torch.zeros(hidden.shape, dtype=shape.dtype)
                mask.masked_fill_(torch.from_numpy(hidden), torch.finfo(shape.dtype).min)
                mask = mask.repeat_interleave(shape.group, dim=0)
        parts.append(
            SharedNode(
                slots=torch.from_numpy(tree.slots[keys]),
                first_slot=int(tree.slots[first]) if in_a_row else None,
                rows=query_rows,
                sequences=torch.from_numpy(sequence[links]),
                mask=mask,
            )
        )
    return parts


def decode_attention(
    plan: DecodePlan,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    turn: Rotation | None,
) -> tuple[Tensor, Tensor]:
    """The CPU path of `decode_attention`."""
    _, heads, d = queries.shape
    out = queries.new_zeros((plan.n_sequences, heads, d), dtype=torch.float32)
    lse = out.new_full((plan.n_sequences, heads), -torch.inf)
    for node in plan.shared:
        part, part_lse = _attend_node(node, queries, keys, values, scale)
        _merge_rows(out, lse, node.sequences, part, part_lse)
    if plan.short is not None:
        _merge_rows(
            out,
            lse,
            plan.short.sequences,
            *_attend_short(plan.short, queries, keys, values, scale, turn),
        )
    for own in plan.private:
        part, part_lse = _attend_private(own, queries, keys, values, scale, turn)
        row = slice(own.sequence, own.sequence + 1)
        mixed.merge_into(out[row], lse[row], part, part_lse)
    return out.to(queries.dtype), lse


def _attend_node(
    node: SharedNode, queries: Tensor, keys: Tensor, values: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """All sequences' queries over one node: out `[readers, heads, d]`, lse `[readers, heads]`."""
    if node.first_slot is None:
        key, value = keys.index_select(0, node.slots), values.index_select(0, node.slots)
    else:
        in_place = slice(node.first_slot, node.first_slot + len(node.slots))
        key, value = keys[in_place], values[in_place]
    readers, (_, heads, d), kv_heads = len(node.rows), queries.shape, keys.shape[1]
    group = heads // kv_heads
    grouped = queries.index_select(0, node.rows).view(readers, kv_heads, group, d).transpose(0, 1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        grouped.reshape(1, kv_heads, readers * group, d),
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        0.0,
        False,
        attn_mask=None if node.mask is None else node.mask[None, None],
        scale=scale,
    )
    out = out.view(kv_heads, readers, group, d).transpose(0, 1).reshape(readers, heads, d)
    lse = lse.view(kv_heads, readers, group).transpose(0, 1).reshape(readers, heads)
    return out, lse


def _attend_private(
    own: PrivateKeys,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    turn: Rotation | None,
) -> tuple[Tensor, Tensor]:
    sets = queries.index_select(0, own.rows)[:, None]  # [n_shifts, 1, heads, d]
    own_turn = None if turn is None else turn.part(own.turned)
    return mixed.mixed_attention(own.plan, sets, keys, values, scale, own_turn)


def _attend_short(
    short: ShortPrivateKeys,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    turn: Rotation | None,
) -> tuple[Tensor, Tensor]:
    """All of them in one call: out `[b, heads, d]`, lse `[b, heads]`."""
    b, (_, heads, d), kv_heads = len(short.rows), queries.shape, keys.shape[1]
    if turn is not None:
        is_turned = short.turned.start < short.turned.stop
        turn = turn.part(short.turned) if is_turned else None
    key = mixed.gathered_keys(keys, short.slots, turn)
    value = values.index_select(0, short.slots)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries.index_select(0, short.rows).view(b, kv_heads, heads // kv_heads, d),
        key.view(b, -1, kv_heads, d).transpose(1, 2),
        value.view(b, -1, kv_heads, d).transpose(1, 2),
        0.0,
        False,
        attn_mask=short.mask,
        scale=scale,
    )
    return out.reshape(b, heads, d), lse.reshape(b, heads)


def _merge_rows(out: Tensor, lse: Tensor, rows: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge partial results into some rows, in place."""
    everything = len(rows) == len(out) and bool((rows.diff() == 1).all())
    mine, mine_lse = (out, lse) if everything else (out[rows], lse[rows])
    mixed.merge_into(mine, mine_lse, part, part_lse)
    if not everything:
        out[rows], lse[rows] = mine, mine_lse
