"""Every attention op on an NVIDIA GPU, correctness first: `make bench-gpu`.

Times `mixed_attention` and `decode_attention` against torch's SDPA, FlashAttention (through torch)
and, where it is installed, FlashInfer, at the shapes of ChunkAttention (arXiv 2402.15220, table 3)
and Hydragen (arXiv 2402.05099, figure 5), in float16. The last line of standard output is the
record; it is kept in `benchmarks/results/gpu.json`. Without a GPU the record says that it was
skipped, nothing is kept, and the exit status is 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from semshare.evaluation.environment import machine, versions
from semshare_kernels import (
    AttentionShape,
    KeyTable,
    KeyTree,
    Rotation,
    apply_rotary,
    decode_attention,
    mixed_attention,
    nearest_codes,
    plan_decode,
    plan_mixed,
    realign_keys,
    simhash,
    simhash_planes,
    write_slots,
)
from semshare_kernels.mixed import reference
from semshare_kernels.rotary import rotated

RESULT = Path(__file__).parent / "results" / "gpu.json"
DTYPE = torch.float16
LIMIT = 4e-3  # maximum error of float16 outputs of about 1
COPY_BYTES = 16 << 30  # of separate copies, so that they fit beside everything else
WORKSPACE_BYTES = 256 << 20
HEADS, HEAD_DIM = 32, 128
CHUNK_ATTENTION = [(32, shared) for shared in (1024, 2048, 4096)]
HYDRAGEN = [(batch, shared) for batch in (64, 256) for shared in (1024, 2048, 4096, 8192, 16_384)]
OWN_KEYS = 256  # keys of a sequence's own, at Hydragen's shapes


def main() -> int:
    """Measure, keep and print the record."""
    if not torch.cuda.is_available():
        print(json.dumps({"skipped": "no NVIDIA GPU that torch can use"}))  # noqa: T201 - record
        return 0
    console = Console(stderr=True)
    record: dict[str, Any] = {}
    parts: dict[str, Callable[[], Any]] = {
        "correctness": _correctness,
        "mixed_prefill": _mixed,
        "decode_chunk_attention": lambda: [_decode(b, s, own=1) for b, s in CHUNK_ATTENTION],
        "decode_hydragen": lambda: [_decode(b, s, own=OWN_KEYS) for b, s in HYDRAGEN],
        "other_ops": _other_ops,
    }
    for name, measure in parts.items():
        with console.status(f"{name}…"):
            record[name] = measure()
    record["hydragen_throughput_kept"] = {
        str(batch): _throughput_kept(record["decode_hydragen"], batch) for batch in (64, 256)
    }
    record |= {"dtype": "float16", "machine": machine(), "versions": versions()}
    RESULT.write_text(json.dumps({"command": "make bench-gpu", "record": record}, indent=1) + "\n")
    print(json.dumps(record))  # noqa: T201 - the record
    return 0


def _throughput_kept(rows: list[dict[str, Any]], batch: int) -> float:
    """Decode throughput at the longest shared prefix over that at the shortest."""
    seconds = [row["ours_s"] for row in rows if row["batch"] == batch]
    return round(seconds[0] / seconds[-1], 3)


def _seconds(action: Callable[[], object]) -> float:
    """Median seconds, by the device's own clock."""
    from triton.testing import do_bench  # noqa: PLC0415 - only with a GPU

    return float(do_bench(action, return_mode="median")) / 1e3


def _device() -> torch.device:
    return torch.device("cuda")


def _pool(slots: int, kv_heads: int, d: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    keys, values = (
        torch.randn(slots, kv_heads, d, generator=generator, device="cuda", dtype=DTYPE)
        for _ in range(2)
    )
    return keys, values


def _rotation(positions: np.ndarray, d: int) -> Rotation:
    angles = positions[:, None] * 10_000.0 ** -(np.arange(0, d, 2) / d)
    cos, sin = (torch.from_numpy(part(angles)).float().cuda() for part in (np.cos, np.sin))
    return Rotation(cos, sin)


def _mixed_case(
    n_q: int, n_k: int, segments: int, heads: int, kv_heads: int, d: int, window: int | None
) -> tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[], Tensor]]:
    """Mixed attention, the same by its definition, and dense SDPA after gathering and moving."""
    rng = np.random.default_rng(n_q)
    positions = np.arange(n_k)
    fresh = np.sort(rng.choice(n_k, n_q, replace=False))
    shifts = rng.integers(-500, 500, segments)[positions * segments // n_k]
    shifts[fresh] = 0
    table = KeyTable(rng.permutation(2 * n_k)[:n_k], positions, shifts)
    shape = AttentionShape(heads, kv_heads, d, DTYPE, _device())
    keys, values = _pool(2 * n_k, kv_heads, d)
    query = torch.randn(n_q, heads, d, device="cuda", dtype=DTYPE)
    plan = plan_mixed(fresh, table, window=window, shape=shape)
    sets = [_rotation(fresh - shift, d) for shift in plan.shifts]
    cos = torch.stack([one.cos for one in sets]).repeat(1, 1, 2).to(DTYPE)
    sin = torch.stack([one.sin for one in sets]).repeat(1, 1, 2).to(DTYPE)
    turn = _rotation(plan.turned_shifts, d)
    upright = apply_rotary(query, cos, sin)[int(np.searchsorted(plan.shifts, 0))]
    rotation, slots = _rotation(shifts, d), torch.from_numpy(table.slots).cuda()
    visible = reference.visible(
        torch.from_numpy(fresh).cuda(), torch.from_numpy(positions).cuda(), window
    )
    scale = d**-0.5

    def ours() -> Tensor:
        return mixed_attention(plan, apply_rotary(query, cos, sin), keys, values, scale, turn)[0]

    def defined() -> Tensor:
        moved = rotated(keys[slots].float(), rotation)
        return reference.attend(upright, moved, values[slots], visible, scale)[0]

    def dense() -> Tensor:
        moved, value = rotated(keys[slots], rotation), values[slots]
        out = torch.nn.functional.scaled_dot_product_attention(
            upright.transpose(0, 1)[None],
            moved.transpose(0, 1)[None],
            value.transpose(0, 1)[None],
            attn_mask=visible,
            scale=scale,
            enable_gqa=heads != kv_heads,
        )
        return out[0].transpose(0, 1)

    return ours, defined, dense


def _correctness() -> dict[str, float]:
    """Maximum errors over head sizes, groups, windows and lengths; fails above the limit."""
    errors = {}
    for d in (64, 80, 96, 128, 256):
        for heads, kv_heads, window in ((9, 3, None), (8, 8, 70), (8, 1, None)):
            ours, defined, _ = _mixed_case(65, 400, 7, heads, kv_heads, d, window)
            name = f"mixed d{d} {heads}/{kv_heads}"
            errors[name] = float((ours().float() - defined()).abs().max())
    for batch, shared, own in ((1, 63, 1), (33, 65, 3), (17, 1024, 80)):
        errors[f"decode {batch} × {shared}"] = _decode(batch, shared, own=own)["max_error"]
    worst = max(errors.values())
    if not worst <= LIMIT:
        raise SystemExit(f"maximum error {worst:.2g} is more than {LIMIT:.2g}: {errors}")
    return errors


def _mixed() -> list[dict[str, Any]]:
    rows = []
    for n_q, n_k in ((500, 5000), (2000, 16_000), (5000, 5000)):
        ours, defined, dense = _mixed_case(n_q, n_k, 40, 32, 8, 128, None)
        error = float((ours().float() - defined()).abs().max()) if n_q < 1000 else None
        ours_s, dense_s = _seconds(ours), _seconds(dense)
        rows.append(
            {
                "queries": n_q,
                "keys": n_k,
                "ours_s": ours_s,
                "sdpa_dense_s": dense_s,
                "speedup": round(dense_s / ours_s, 2),
                "max_error": error,
            }
        )
    return rows


def _decode(batch: int, shared: int, *, own: int) -> dict[str, Any]:
    """One decode step of `batch` sequences over a shared node, against all alternatives."""
    lengths = np.array([shared, *[own] * batch])
    starts = np.concatenate(([0], np.cumsum(lengths)))
    stored_at = np.concatenate([np.arange(shared), *[shared + np.arange(own)] * batch])
    paths = tuple(np.array([0, 1 + index]) for index in range(batch))
    tree = KeyTree(
        np.arange(starts[-1]), stored_at, starts, paths, (np.zeros(2, np.int64),) * batch
    )
    q_pos = np.full(batch, shared + own - 1)
    keys, values = _pool(int(starts[-1]), HEADS, HEAD_DIM)
    query = torch.randn(batch, HEADS, HEAD_DIM, device="cuda", dtype=DTYPE)
    plan = plan_decode(
        q_pos, tree, window=None, shape=AttentionShape(HEADS, HEADS, HEAD_DIM, DTYPE, _device())
    )
    rows = query[torch.from_numpy(plan.row_sequence).cuda()]
    scale = HEAD_DIM**-0.5
    one_copy = 4 * (shared + own) * HEADS * HEAD_DIM
    copied = min(batch, max(COPY_BYTES // one_copy, 1))
    tables = [
        torch.from_numpy(tree.keys_of(path, np.zeros(2, np.int64)).slots).cuda()
        for path in paths[:copied]
    ]
    key_copies, value_copies = (
        torch.stack([pool[slots].transpose(0, 1) for slots in tables]) for pool in (keys, values)
    )

    def ours() -> Tensor:
        return decode_attention(plan, rows, keys, values, scale)[0]

    def separate() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query[:copied, :, None], key_copies, value_copies, scale=scale
        )[:, :, 0]

    def flash() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return separate()

    ours_s, share = _seconds(ours), batch / copied
    row: dict[str, Any] = {
        "batch": batch,
        "shared": shared,
        "own": own,
        "max_error": float((ours()[:copied].float() - separate().float()).abs().max()),
        "ours_s": ours_s,
        "sdpa_s": _seconds(separate) * share,
        "flash_attention_s": _seconds(flash) * share,
        "copied": copied,  # sequences timed; the times above are scaled to the batch
    }
    row |= _flashinfer(batch, shared, own, keys, values, query)
    row["speedup"] = round(row["sdpa_s"] / ours_s, 2)
    return row


def _flashinfer(
    batch: int, shared: int, own: int, keys: Tensor, values: Tensor, query: Tensor
) -> dict[str, Any]:
    """FlashInfer's paged decode and its cascade over the same pages; what fails says why."""
    try:
        import flashinfer  # noqa: PLC0415 - optional
    except ImportError:
        return {}
    page, indices = 1, {"dtype": torch.int32, "device": "cuda"}
    cache = (keys[:, None], values[:, None])
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    offsets = torch.arange(batch + 1, **indices)
    own_pages = torch.arange(shared, shared + batch * own, **indices)
    shared_pages = torch.arange(shared, **indices)
    every = torch.cat(
        [torch.cat((shared_pages, part)) for part in own_pages.view(batch, own).unbind()]
    )
    ones = torch.ones(batch, **indices)
    found: dict[str, Any] = {}

    def paged() -> Callable[[], object]:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(
            offsets * (shared + own), every, ones, HEADS, HEADS, HEAD_DIM, page, q_data_type=DTYPE
        )
        return lambda: wrapper.run(query, cache)

    def cascade() -> Callable[[], object]:
        wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, workspace, "NHD")
        wrapper.plan(
            [torch.tensor([0, batch], **indices), offsets],
            [torch.tensor([0, shared], **indices), offsets * own],
            [shared_pages, own_pages],
            [ones[:1], ones],
            HEADS,
            HEADS,
            HEAD_DIM,
            page,
            q_data_type=DTYPE,
        )
        return lambda: wrapper.run(query, cache)

    for name, make in (("flashinfer_paged", paged), ("flashinfer_cascade", cascade)):
        try:
            found[f"{name}_s"] = _seconds(make())
        except Exception as error:
            found[f"{name}_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def _other_ops() -> dict[str, Any]:
    """Bytes or pairs a second of the small ops."""
    n, kv_heads, d = 5000, 8, 128
    keys, values = _pool(2 * n, kv_heads, d)
    slots = torch.randperm(2 * n, device="cuda")
    source, target = slots[:n], slots[n:]
    rotation = _rotation(np.arange(n) % 700 - 350, d)
    fresh = torch.randn(n, kv_heads, d, device="cuda", dtype=DTYPE)
    planes = simhash_planes(128, 256).cuda()
    vectors = torch.randn(n, 128, device="cuda")
    codes, centre = simhash(vectors, planes), torch.arange(n, device="cuda")
    realign_s = _seconds(lambda: realign_keys(keys, source, target, rotation))
    write_s = _seconds(lambda: write_slots(keys, values, source, fresh, fresh))
    match_s = _seconds(lambda: nearest_codes(codes, codes, centre, n))
    return {
        "realign_s": realign_s,
        "realign_bytes_per_s": 2 * fresh.nbytes / realign_s,
        "pool_write_s": write_s,
        "pool_write_bytes_per_s": 4 * fresh.nbytes / write_s,
        "simhash_s": _seconds(lambda: simhash(vectors, planes)),
        "top1_s": match_s,
        "top1_pairs_per_s": n * n / match_s,
    }


if __name__ == "__main__":
    sys.exit(main())
