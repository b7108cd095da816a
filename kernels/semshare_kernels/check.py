"""Compiles every kernel that dispatch can choose for real GPUs, without one, and reads the result.

Triton compiles to PTX, NVIDIA's assembler to machine code; neither needs a driver. What a kernel
takes of a multiprocessor, and whether its products became matrix instructions, is known then.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from semshare_kernels.merge.triton_kernel import merge_parts
from semshare_kernels.pool_write.gpu import MAX_BLOCK
from semshare_kernels.pool_write.triton_kernel import scatter
from semshare_kernels.rotary.gpu import BLOCK_TOKENS
from semshare_kernels.rotary.triton_kernel import realign
from semshare_kernels.simhash import gpu as simhash_gpu
from semshare_kernels.simhash.triton_kernel import encode, hamming_top_k
from semshare_kernels.tiles.configs import DTYPES, HEAD_DIMS, MAX_REGISTERS, tile_config
from semshare_kernels.tiles.launch import product_precision
from semshare_kernels.tiles.triton_kernel import attend_tiles

# Shared memory that one block may take, bytes (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
ARCHS = tuple(SHARED_LIMIT)
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_MATRIX_INSTRUCTION = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)")
_WIDE_LOAD = re.compile(
    r"ld\.global\S*\.v4\.b32|cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], 0x10"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way a kernel is compiled."""

    kernel: Any  # of triton.jit
    config: str
    arguments: dict[str, str]  # type of each argument that is no constant
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2
    max_registers: int | None = None
    products: bool = False  # whether it has any tl.dot

    @property
    def name(self) -> str:
        """Of the kernel."""
        return str(self.kernel.__name__)


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What one variant takes on one architecture."""

    kernel: str
    config: str
    arch: str
    shared_bytes: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    wide_loads: int  # instructions that load 16 bytes a thread
    matrix_instructions: int
    ok: bool
    problem: str = ""


def variants() -> list[Variant]:
    """Everything that dispatch can choose, for the head sizes and dtypes that are supported."""
    return [*_tile_variants(), *_other_variants()]


def _tile_variants() -> Iterator[Variant]:
    tables = ("query_at", "slots", "key_at", "tile_row", "tile_rows", "tile_items")
    items = ("item_query", "item_start", "item_stop", "item_seen")
    for head_dim in HEAD_DIMS:
        for dtype in DTYPES:
            own = "*" + _TYPES[dtype]
            configs = dict.fromkeys(tile_config(rows, head_dim, dtype) for rows in (16, 1024))
            for config in configs:
                # Partial results are float32, whole ones the model's type.
                for turns, out in product((False, True), dict.fromkeys(("*fp32", own))):
                    yield Variant(
                        attend_tiles,
                        f"d{head_dim} {_TYPES[dtype]} m{config.block_m} n{config.block_n}"
                        f"{' turns' if turns else ''}{'' if out == own else ' partial'}",
                        dict.fromkeys(("query", "keys", "values"), own)
                        | dict.fromkeys((*tables, *items), "*i64")
                        | dict.fromkeys(("cos", "sin", "lse"), "*fp32")
                        | {"out": out, "first_turned": "i64", "window": "i64", "scale": "fp32"},
                        {
                            "HEADS": 32,
                            "KV_HEADS": 8,
                            "D": head_dim,
                            "BLOCK_D": triton.next_power_of_2(head_dim),
                            "CHUNK_D": min(triton.next_power_of_2(head_dim), config.chunk_d),
                            "ROPE_D": head_dim if turns else 2,
                            "BLOCK_M": config.block_m,
                            "BLOCK_N": config.block_n,
                            "TURNS": turns,
                            "PRECISION": product_precision(dtype),
                        },
                        config.warps,
                        config.stages,
                        MAX_REGISTERS,
                        products=True,
                    )


def _other_variants() -> Iterator[Variant]:
    for head_dim in HEAD_DIMS:
        block_d = triton.next_power_of_2(head_dim)
        yield Variant(
            merge_parts,
            f"d{head_dim}",
            dict.fromkeys(("part_out", "part_lse", "out", "lse"), "*fp32")
            | dict.fromkeys(("offsets", "parts"), "*i64"),
            {"HEADS": 32, "D": head_dim, "BLOCK_D": block_d},
            warps=1,
        )
        for dtype in DTYPES:
            own = "*" + _TYPES[dtype]
            yield Variant(
                realign,
                f"d{head_dim} {_TYPES[dtype]}",
                {"keys": own, "n": "i64"}
                | dict.fromkeys(("source", "target"), "*i64")
                | dict.fromkeys(("cos", "sin"), "*fp32"),
                {
                    "HEADS": 8,
                    "D": head_dim,
                    "ROPE_D": head_dim,
                    "BLOCK_N": BLOCK_TOKENS,
                    "BLOCK_D": block_d,
                },
            )
            width = 8 * head_dim
            yield Variant(
                scatter,
                f"width{width} {_TYPES[dtype]}",
                dict.fromkeys(("keys", "values", "new_keys", "new_values"), own)
                | {"slots": "*i64"},
                {"WIDTH": width, "BLOCK": min(triton.next_power_of_2(width), MAX_BLOCK)},
            )
    yield Variant(
        encode,
        "dim128 bits256",
        {"vectors": "*fp32", "planes": "*fp32", "codes": "*i32", "n": "i64"},
        {
            "DIM": 128,
            "BITS": 256,
            "BLOCK_N": simhash_gpu.ENCODE_TOKENS,
            "BLOCK_DIM": simhash_gpu.ENCODE_DIM,
            "PRECISION": product_precision(torch.float32),
        },
        products=True,
    )
    for k in (1, 4):
        yield Variant(
            hamming_top_k,
            f"bits256 k{k}",
            dict.fromkeys(("codes", "candidates"), "*i32")
            | dict.fromkeys(("centre", "nearest"), "*i64")
            | dict.fromkeys(("n", "m", "radius"), "i64"),
            {
                "WORDS": 8,
                "K": k,
                "BLOCK_N": simhash_gpu.MATCH_TOKENS,
                "BLOCK_M": simhash_gpu.MATCH_CANDIDATES,
            },
        )


def check(variant: Variant, arch: int) -> KernelReport:
    """Compile one variant for one architecture, `80` for sm_80, and read what came out."""
    names = variant.kernel.arg_names
    signature = {name: variant.arguments.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name].startswith("*")
    }
    source = ASTSource(variant.kernel, signature, constants, aligned)
    options = {
        "num_warps": variant.warps,
        "num_stages": variant.stages,
        "maxnreg": variant.max_registers,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    registers, stack, spill = _resources(ptx, arch)
    matrix = len(_MATRIX_INSTRUCTION.findall(ptx))
    shared = int(compiled.metadata.shared)
    problems = [
        text
        for text, is_problem in (
            (f"spills {spill} bytes", spill > 0),
            (f"takes {stack} bytes of stack", stack > 0),
            (f"takes {shared} bytes of shared memory", shared > SHARED_LIMIT[arch]),
            ("has products that are no matrix instructions", variant.products and matrix == 0),
        )
        if is_problem
    ]
    return KernelReport(
        kernel=variant.name,
        config=variant.config,
        arch=f"sm_{arch}",
        shared_bytes=shared,
        registers=registers,
        stack_bytes=stack,
        spill_bytes=spill,
        wide_loads=len(_WIDE_LOAD.findall(ptx)),
        matrix_instructions=matrix,
        ok=not problems,
        problem="; ".join(problems),
    )


def _resources(ptx: str, arch: int) -> tuple[int, int, int]:
    """Registers a thread, bytes of stack, and bytes spilled, as the assembler counts them."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        name = f"--gpu-name={sm_arch_from_capability(arch)}"
        program = [get_ptxas(arch).path, "-v", name, file.name, "-o", "/dev/null"]
        done = subprocess.run(program, capture_output=True, text=True, check=True)  # noqa: S603
    used = re.search(r"Used (\d+) registers", done.stderr)
    frame = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr
    )
    if used is None or frame is None:
        raise RuntimeError(f"the assembler said nothing of resources: {done.stderr!r}")
    return int(used[1]), int(frame[1]), int(frame[2]) + int(frame[3])


def check_all(*, processes: int | None = None) -> Iterator[KernelReport]:
    """Check every variant for every architecture, on all cores; reports as they come."""
    jobs = [(index, arch) for arch in ARCHS for index in range(len(variants()))]
    # Spawned: a fork of a process with torch's threads may hang.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_check_one, *job) for job in jobs]):
            yield done.result()


def _check_one(index: int, arch: int) -> KernelReport:
    torch.set_num_threads(1)
    return check(variants()[index], arch)
