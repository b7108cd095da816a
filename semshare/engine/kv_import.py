"""KV that was computed elsewhere becomes a donor, once it has been found to be this model's.

Four checks, from the cheapest to the dearest; nothing can be found by others before the last one:

1. dtype, shapes, finite numbers, and magnitudes that the weights can give at all;
2. keys and values of *all* tokens in the first layer, which follow from the ids alone;
3. the last `TESTED` rows, and one drawn by the ids from each `STRIDE` before them, are computed
   again in every layer, over the KV that was brought, and must be what was brought;
4. the answer's logits are finite.

They find KV of another prompt, model, order or position, and spans of `STRIDE` tokens that another
prompt lent. KV of the other rows is tested only by what it does to the tested ones, so this is no
proof against somebody who forges it with care: whoever may bring KV into a namespace is trusted by
those who use that namespace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare.engine.adapter import NO_ROPE, ModelAdapter
from semshare.engine.kv_bounds import largest_magnitudes
from semshare.engine.prefill import Prefill, Prefilled
from semshare.engine.served import Planned, Served
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import KVMismatch
from semshare.kv.exchange import LayerKV
from semshare.kv.sequence import KVSequence, lay_out
from semshare.planning.plan import full_plan
from semshare.types import DonorInfo, Ids, TokenSource
from semshare_kernels import apply_rotary, write_slots

if TYPE_CHECKING:
    from semshare.session import Session

TESTED = 8
STRIDE = 16  # tokens: the shortest span that a default policy reuses
_CHUNK = 1024  # tokens whose first layer is computed at a time
# Most deviation of a tested row, see `deviations`. What another order of summation gives is at most
# 3e-6, 0.024 and 0.003 (transformers' own prefill of 400 tokens on SmolLM2-135M); the same prompt
# one position on is 0.45 away and more in every layer.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.012}


def import_donor(
    session: Session,
    ids: Ids,
    layers: Iterable[LayerKV],
    *,
    namespace: str,
    pinned: bool,
    ttl_s: float | None = None,
) -> DonorInfo:
    """Verify the KV of a prompt and make the prompt a donor.

    Args:
        session: of the engine.
        ids: `[n]` of the prompt, checked.
        layers: in their order; each is taken when the one before it has been stored, so that one at
            a time needs to exist.
        namespace: whose requests may find the donor.
        pinned: never evicted.
        ttl_s: seconds until it expires; None: it stays.

    Raises:
        KVMismatch: it is not what this model computes. Nothing stays behind.
        PoolExhausted: no room, and nothing left to evict.

    """
    with session.lock:
        layout = lay_out(full_plan(ids))
        no_pages = np.empty(0, np.int64)
        sequence = KVSequence(session.pool, layout, no_pages, room=session.config.history_tokens)
    try:
        _store(session, ids, sequence, layers)
        logits = _tested(session, ids, sequence)
        served = Served(
            session.executor,
            Planned(full_plan(ids), "prefix"),
            namespace,
            Stopwatch(),
            room=0,
            in_full_if_short=False,
            on_fallback=lambda _: None,  # there is no prefill that could fail
            prefilled=Prefilled(sequence, logits),
        )
        history = session.outside.first_history(served)
        with session.lock:
            return session.keeper.keep_donor(served, sequence, history, pinned=pinned, ttl_s=ttl_s)
    finally:
        with session.lock:
            sequence.release()


def deviations(got: Tensor, expected: Tensor) -> Tensor:
    """How far each row is from what it should be, `[n]` float32, relative to its length.

    Args:
        got, expected: `[n, kv_heads, d]`. A row of `expected` that is shorter than their median
            (values of the first token often are) is measured by the median: its numbers are small
            because they cancel out, and rounding does not shrink with them.

    """
    wanted = expected.float().flatten(1)
    lengths = wanted.norm(dim=1)
    scale = torch.maximum(lengths, lengths.median())
    distances: Tensor = (got.float().flatten(1) - wanted).norm(dim=1)
    return distances / scale


def _store(session: Session, ids: Ids, sequence: KVSequence, layers: Iterable[LayerKV]) -> None:
    """Write all layers into the sequence's slots, each once it has passed the first checks."""
    model, count = session.model, 0
    slots = torch.from_numpy(sequence.own_slots(np.arange(len(ids)))).to(model.device)
    for index, layer in enumerate(layers):
        count += 1
        if count > model.n_layers:
            break
        with torch.inference_mode():
            _check_shape(model, index, len(ids), layer)
            key, value = layer.key.to(model.device), layer.value.to(model.device)
            _check_numbers(model, index, key, value)
            if index == 0:
                _check_first_layer(model, ids, key, value)
            with session.lock:
                write_slots(session.pool.keys[index], session.pool.values[index], slots, key, value)
    if count != model.n_layers:
        found = f"over {model.n_layers}" if count > model.n_layers else str(count)
        raise KVMismatch(f"{found} layers were brought: this model has {model.n_layers}")


def _check_shape(model: ModelAdapter, index: int, n: int, layer: LayerKV) -> None:
    shape = (n, model.n_kv_heads, model.head_dim)
    for name, tensor in (("key", layer.key), ("value", layer.value)):
        if tuple(tensor.shape) != shape or tensor.dtype != model.dtype:
            raise KVMismatch(
                f"the {name} of layer {index} is {tuple(tensor.shape)} {tensor.dtype}: it must be "
                f"{shape} {model.dtype}, that is [tokens, kv_heads, head_dim] of this model"
            )


def _check_numbers(model: ModelAdapter, index: int, key: Tensor, value: Tensor) -> None:
    limits = largest_magnitudes(model, index)
    for name, tensor, limit in (("key", key, limits.key), ("value", value, limits.value)):
        largest = float(tensor.abs().max())
        if not largest <= limit:  # also where it is NaN
            raise KVMismatch(
                f"the {name} of layer {index} reaches {largest:g}: this model's weights give at "
                f"most {limit:g}; send the KV that this very model computed"
            )


def _check_first_layer(model: ModelAdapter, ids: Ids, key: Tensor, value: Tensor) -> None:
    for start in range(0, len(ids), _CHUNK):
        part = slice(start, start + _CHUNK)
        at = torch.arange(start, min(start + _CHUNK, len(ids)), device=model.device)
        hidden = model.embed(torch.from_numpy(ids[part].astype(np.int64)).to(model.device))
        _, right_key, right_value = model.attention_inputs(0, hidden)
        if (kind := model.rope_kinds[0]) != NO_ROPE:
            right_key = apply_rotary(right_key, *model.rope(at)[kind])
        _check_rows(0, at.cpu().numpy(), key[part], right_key, value[part], right_value)


def _tested(session: Session, ids: Ids, sequence: KVSequence) -> Tensor:
    """Compute some rows again over the sequence; returns the last one's logits `[1, vocab]`."""
    rows = _rows_to_test(ids)
    source = np.full(len(ids), TokenSource.PREFIX, dtype=np.uint8)
    source[rows] = TokenSource.FRESH
    kept = source == TokenSource.PREFIX
    plan = replace(
        full_plan(ids),
        source=source,
        position=np.where(kept, np.arange(len(ids)), -1).astype(np.int32),
        slots=np.where(kept, sequence.key_table(len(ids)).slots, -1),
    )
    model, pool = session.model, session.pool
    with session.lock, torch.inference_mode():
        # A plan like any other: these rows are fresh, with slots of their own beside the brought.
        again = Prefill(session.executor, plan, Stopwatch(), room=0)
        try:
            again.run(Stopwatch())
        except ArithmeticError:
            raise KVMismatch(
                "the KV gives logits that are not finite: send the KV that this very model computed"
            ) from None
        try:
            brought = torch.from_numpy(sequence.own_slots(rows)).to(model.device)
            computed = torch.from_numpy(again.sequence.own_slots(rows)).to(model.device)
            for index, (keys, values) in enumerate(zip(pool.keys, pool.values, strict=True)):
                _check_rows(
                    index, rows, keys[brought], keys[computed], values[brought], values[computed]
                )
        finally:
            again.sequence.release()
    if again.logits is None:
        raise AssertionError("the last row was computed")
    return again.logits


def _rows_to_test(ids: Ids) -> NDArray[np.int64]:
    """The last rows and one of each `STRIDE`, by the ids, ascending: the same KV fares alike."""
    before = max(len(ids) - TESTED, 0)
    seed = int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")
    starts = np.arange(0, before, STRIDE)
    ends = np.minimum(starts + STRIDE, before)
    drawn = np.random.default_rng(seed).integers(starts, ends)
    return np.concatenate((drawn, np.arange(before, len(ids))))


def _check_rows(
    layer: int,
    positions: NDArray[np.int64],
    key: Tensor,
    right_key: Tensor,
    value: Tensor,
    right_value: Tensor,
) -> None:
    limit = TOLERANCE[key.dtype]
    for name, got, expected in (("key", key, right_key), ("value", value, right_value)):
        away = deviations(got, expected)
        if not bool((away <= limit).all()):
            worst = int(away.argmax())
            raise KVMismatch(
                f"the {name} of token {positions[worst]} in layer {layer} is "
                f"{float(away[worst]):.2g} of its length away from what this model computes there, "
                f"over {limit:g}: send KV of exactly these ids at the positions from 0 on, nothing "
                "of it approximate"
            )
