"""A few loops in C, compiled once with the machine's own compiler; absent where there is none.

Everything works without them, more slowly: torch has no fused operation for a rotation on the way
from slot to slot, for nearest codes, nor for attention of many sequences over keys they share, and
its matrix products are made for many rows (docs/decisions.md).
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from semshare_kernels.rotary.rotation import Rotation
    from semshare_kernels.shape import AttentionShape

_SOURCES = sorted(Path(__file__).parent.glob("*.c"))
_HEADERS = sorted(Path(__file__).parent.glob("*.h"))
# Compiled for OpenMP but not linked with it: the calls find the runtime that torch has loaded, and
# run on its threads.
_COMPILE = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC")
# Tables of a tile program, in the order of `Work` in attention.c.
TILE_ARRAYS = (
    "query_at",
    "slots",
    "key_at",
    "tile_row",
    "tile_rows",
    "tile_items",
    "item_query",
    "item_start",
    "item_stop",
    "item_seen",
    "task_tile",
    "task_head",
    "task_heads",
)
VECTOR = 16  # head sizes that the loops of attention take are multiples of it,
MAX_HEAD = 256  # and so large at most
MAX_ROWS = 96  # rows × heads of a group in a tile, at most
_logger = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops; None where there is no compiler, or `SEMSHARE_NATIVE=0` says so.

    Raises:
        Nothing: whatever fails is logged, and the slower paths are taken.

    """
    if os.environ.get("SEMSHARE_NATIVE", "1") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        _logger.info("no C compiler: attention, re-alignment and matching run in torch and NumPy")
        return None
    try:
        return _declared(ctypes.CDLL(str(_built(compiler))))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        _logger.warning("the loops in C can't be used, torch's are: %s", error)
        return None


def _built(compiler: str) -> Path:
    """The shared library for this source, compiler and CPU, from the user's cache."""
    version = subprocess.run(  # noqa: S603
        [compiler, "--version"], capture_output=True, check=True, text=True
    ).stdout
    sources = (source.read_text(encoding="utf-8") for source in (*_HEADERS, *_SOURCES))
    key = hashlib.sha256("\0".join((*sources, version, _cpu(), *_COMPILE)).encode()).hexdigest()[
        :16
    ]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "semshare" / "native"
    path = folder / f"kernels-{key}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        parts = {source: Path(scratch) / f"{source.stem}.o" for source in _SOURCES}
        linked = Path(scratch) / "kernels.so"
        steps = [
            [compiler, *_COMPILE, "-c", str(source), "-o", str(part)]
            for source, part in parts.items()
        ]
        steps.append([compiler, "-shared", *map(str, parts.values()), "-lm", "-o", str(linked)])
        for step in steps:
            subprocess.run(step, capture_output=True, check=True, timeout=120)  # noqa: S603
        linked.replace(path)  # whole or not at all, whoever else is at it
    return path


def _cpu() -> str:
    """What `-march=native` depends on: a cache may be shared by machines of other kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name in ("turn_float32", "turn_bfloat16"):
        function = getattr(loaded, name)
        function.argtypes, function.restype = [pointer] * 6 + [number] * 4, None
    loaded.copy_rows.argtypes, loaded.copy_rows.restype = [pointer] * 4 + [number] * 2, None
    loaded.nearest_codes.argtypes = [pointer] * 4 + [number] * 5
    loaded.nearest_codes.restype = ctypes.c_int
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if (attend := _attend_for(loaded, dtype)) is not None:
            attend.argtypes, attend.restype = [pointer], ctypes.c_int
    loaded.merge_parts.argtypes, loaded.merge_parts.restype = [pointer] * 6 + [number] * 3, None
    for name in ("linear_float32", "linear_bfloat16"):
        function = getattr(loaded, name)
        function.argtypes, function.restype = [pointer] * 4 + [number] * 3, ctypes.c_int
    return loaded


def _attend_for(loaded: ctypes.CDLL, dtype: torch.dtype) -> Any:
    """The loop for a dtype; None if the compiler did not know it."""
    return getattr(loaded, f"attend_tiles_{str(dtype).removeprefix('torch.')}", None)


def attends(shape: AttentionShape) -> bool:
    """Whether there is a compiled loop for attention of this shape."""
    loops = library()
    if loops is None or shape.head_dim % VECTOR or shape.head_dim > MAX_HEAD:
        return False
    return _attend_for(loops, shape.dtype) is not None


class TileWork(ctypes.Structure):
    """A tile program cut into tasks, with its tables: `Work` in attention.c.

    Args:
        arrays: the tables by name, int64 and contiguous; kept for as long as this is.
        numbers: the others by name.

    """

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "keys", "values", "cos", "sin")),
        *((name, ctypes.c_void_p) for name in ("out", "lse")),
        *((name, ctypes.c_void_p) for name in TILE_ARRAYS),
        *((name, ctypes.c_int64) for name in ("n_tasks", "heads", "kv_heads", "d", "window")),
        *((name, ctypes.c_int64) for name in ("first_turned", "half", "few_rows")),
        ("scale", ctypes.c_double),
    )

    def __init__(self, arrays: dict[str, NDArray[np.int64]], **numbers: int) -> None:
        self.arrays = {
            name: np.ascontiguousarray(arrays[name], dtype=np.int64) for name in TILE_ARRAYS
        }
        super().__init__(
            **{name: array.ctypes.data for name, array in self.arrays.items()}, **numbers
        )
        self.last_slot = int(self.arrays["slots"].max(initial=-1))

    def copy(self) -> TileWork:
        """One that a call may fill in; its tables are those of this one."""
        return type(self).from_buffer_copy(self)


def attend_tiles(
    work: TileWork,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    turn: Rotation | None,
) -> None:
    """Run the tasks of a tile program, see `semshare_kernels.tiles`.

    Args:
        work: the program.
        query: `[n_query_rows, heads, d]`.
        keys, values: `[n_slots, kv_heads, d]` of the pool.
        out: `[n_written, heads, d]` float32, written.
        lse: `[n_written, heads]` float32, written.
        scale: of the dot products.
        turn: of the keys from the program's `first_turned` on; None if all lie right.

    Raises:
        ValueError: these are not the tensors that the program is for.
        MemoryError: no memory for scratch.

    """
    loops = library()
    attend = None if loops is None else _attend_for(loops, keys.dtype)
    if attend is None:
        raise RuntimeError(f"no compiled loop for {keys.dtype}: ask `attends` before planning")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("keys and values must be contiguous, as pools are")
    query = query.contiguous()
    if {query.dtype, keys.dtype, values.dtype} != {keys.dtype}:
        raise ValueError("queries, keys and values must be of one dtype")
    asked, slots = (len(work.arrays["query_at"]), work.heads, work.d), len(keys)
    if query.shape != asked or keys.shape != (slots, work.kv_heads, work.d):
        raise ValueError(
            f"queries of {tuple(query.shape)} over keys of {tuple(keys.shape)}: the plan is for "
            f"{asked} over {(slots, work.kv_heads, work.d)}"
        )
    if values.shape != keys.shape or work.last_slot >= slots:
        raise ValueError(
            f"values of {tuple(values.shape)}, keys of {tuple(keys.shape)}, slots up to "
            f"{work.last_slot}: all must be of one pool"
        )
    call = work.copy()
    call.query, call.keys, call.values = query.data_ptr(), keys.data_ptr(), values.data_ptr()
    call.out, call.lse, call.scale = out.data_ptr(), lse.data_ptr(), scale
    if turn is None:
        call.cos = call.sin = None
    else:
        cos, sin = (part.to(torch.float32).contiguous() for part in (turn.cos, turn.sin))
        if len(cos) != len(work.arrays["slots"]) - work.first_turned:
            raise ValueError(
                f"angles of {len(cos)} keys: the plan turns "
                f"{len(work.arrays['slots']) - work.first_turned}"
            )
        call.cos, call.sin, call.half = cos.data_ptr(), sin.data_ptr(), cos.shape[1]
    if attend(ctypes.addressof(call)):
        raise MemoryError("no memory for the scratch of attention")


def merge_parts(
    part_out: Tensor, part_lse: Tensor, offsets: Tensor, parts: Tensor, out: Tensor, lse: Tensor
) -> bool:
    """See `semshare_kernels.merge.merge_states`; whether it was done."""
    loops = library()
    if loops is None or {part_out.dtype, part_lse.dtype} != {torch.float32}:
        return False
    if {offsets.dtype, parts.dtype} != {torch.int64} or not part_out.is_cpu:
        return False
    given = [tensor.contiguous() for tensor in (part_out, part_lse, offsets, parts)]
    loops.merge_parts(*(tensor.data_ptr() for tensor in (*given, out, lse)), *out.shape)
    return True


def move_rows(
    source_pool: Tensor,
    source: Tensor,
    target_pool: Tensor,
    target: Tensor,
    rotation: Rotation | None,
) -> bool:
    """Copy keys or values from slots of one pool to slots of another, turned if angles are given.

    Args:
        source_pool, target_pool: `[n_slots, heads, d]` contiguous, of one dtype; may be the same.
        source, target: `[n]` int64; no slot of the same pool is in both.
        rotation: of the n keys; None copies them as they are.

    Returns:
        Whether it was done: false where there is no compiled loop for it.

    """
    loops = library()
    if loops is None or not (source_pool.is_contiguous() and target_pool.is_contiguous()):
        return False
    heads, d = source_pool.shape[1:]
    tokens = {len(source), len(target), *(() if rotation is None else (len(rotation.cos),))}
    if len(tokens) != 1:
        raise ValueError(f"slots and angles of {sorted(tokens)} tokens: they must be as many")
    if (source.dtype, target.dtype, source_pool.dtype) != (
        torch.int64,
        torch.int64,
        target_pool.dtype,
    ):
        raise ValueError("slots must be int64, and both pools of one dtype")
    source, target = source.contiguous(), target.contiguous()
    slots = (source_pool.data_ptr(), target_pool.data_ptr(), source.data_ptr(), target.data_ptr())
    if rotation is None:
        loops.copy_rows(*slots, len(source), heads * d * source_pool.element_size())
        return True
    turn = {torch.float32: loops.turn_float32, torch.bfloat16: loops.turn_bfloat16}.get(
        source_pool.dtype
    )
    if turn is None:
        return False
    cos, sin = (part.to(torch.float32).contiguous() for part in (rotation.cos, rotation.sin))
    turn(*slots, cos.data_ptr(), sin.data_ptr(), len(source), heads, d, cos.shape[1])
    return True


def nearest_codes(
    codes: Tensor, candidates: Tensor, centre: Tensor, radius: int, k: int
) -> Tensor | None:
    """See `semshare_kernels.simhash.nearest_codes`; None where there is no compiled loop for it."""
    loops = library()
    if loops is None:
        return None
    if codes.shape[1] != candidates.shape[1]:
        raise ValueError(f"codes of {codes.shape[1]} and {candidates.shape[1]} words")
    codes, by_word, centre = codes.contiguous(), candidates.T.contiguous(), centre.contiguous()
    (n, words), m = codes.shape, len(candidates)
    nearest = torch.empty((n, k), dtype=torch.int64)
    failed = loops.nearest_codes(
        codes.data_ptr(),
        by_word.data_ptr(),
        centre.data_ptr(),
        nearest.data_ptr(),
        n,
        m,
        words,
        min(radius, m + int(centre.abs().max()) if n else 0),
        k,
    )
    return None if failed else nearest
