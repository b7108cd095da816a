"""What each op must read, write and compute at least, and the time a GPU needs for that.

Derivations are in `kernels/README.md`, whose table this module prints:
`python -m semshare_kernels.roofline`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU's limits, from its data sheet."""

    name: str
    bytes_per_s: float  # of its memory
    flops_per_s: float  # of 16-bit matrix instructions, dense
    simple_per_s: float  # of float32 and int32 instructions outside of them


A100 = Device("A100 80 GB SXM", 2.039e12, 312e12, 19.5e12)
H100 = Device("H100 SXM", 3.35e12, 989e12, 66.9e12)


@dataclass(frozen=True, slots=True)
class Work:
    """The least an op has to do."""

    op: str
    shape: str
    bytes: float
    matrix_flops: float = 0.0
    simple_ops: float = 0.0

    def seconds(self, device: Device) -> float:
        """The longest of what memory, matrix units and other units need: they run side by side."""
        return max(
            self.bytes / device.bytes_per_s,
            self.matrix_flops / device.flops_per_s,
            self.simple_ops / device.simple_per_s,
        )

    def limit(self, device: Device) -> str:
        """What it waits for."""
        parts = {
            "memory": self.bytes / device.bytes_per_s,
            "matrix units": self.matrix_flops / device.flops_per_s,
            "other units": self.simple_ops / device.simple_per_s,
        }
        return max(parts, key=lambda name: parts[name])


def mixed_prefill(n_q: int, n_k: int, heads: int, kv_heads: int, d: int, *, b: int = 2) -> Work:
    """Queries scattered evenly over the keys see half of them."""
    kv = 2 * n_k * kv_heads * d * b
    rows = 2 * n_q * heads * d * b
    tables = 16 * n_k  # slot and position of each key
    pairs = n_q * n_k / 2 * heads
    return Work(
        "mixed prefill",
        f"{n_q:,} × {n_k:,}",
        kv + rows + tables,
        matrix_flops=4 * pairs * d,
        simple_ops=8 * pairs,
    )


def decode(
    batch: int, shared: int, own: int, heads: int, kv_heads: int, d: int, *, b: int = 2
) -> Work:
    """One query of each sequence over a node that all share and keys of its own."""
    keys = shared + batch * own
    pairs = batch * (shared + own) * heads
    rows = 2 * batch * heads * d * b + 2 * 2 * batch * heads * (d + 1) * 4  # two partial results
    return Work(
        "shared decode",
        f"{batch} × ({shared:,} + {own})",
        2 * keys * kv_heads * d * b + rows + 16 * keys,
        matrix_flops=4 * pairs * d,
        simple_ops=8 * pairs,
    )


def separate_decode(
    batch: int, keys: int, heads: int, kv_heads: int, d: int, *, b: int = 2
) -> Work:
    """The same with a copy of all keys for each sequence."""
    pairs = batch * keys * heads
    return Work(
        "decode, separate copies",
        f"{batch} × {keys:,}",
        2 * batch * keys * kv_heads * d * b + 2 * batch * heads * d * b,
        matrix_flops=4 * pairs * d,
        simple_ops=8 * pairs,
    )


def merge(rows: int, parts: int, heads: int, d: int) -> Work:
    """Partial results of each row, read once; the row, written once."""
    read, written = rows * parts * heads * (d + 1) * 4, rows * heads * (d + 1) * 4
    return Work(
        "merge", f"{rows} × {parts} parts", read + written, simple_ops=2 * rows * parts * heads * d
    )


def realign(tokens: int, layers: int, kv_heads: int, d: int, *, b: int = 2) -> Work:
    """Keys read, turned and written; the angles' cosines and sines are read in each layer."""
    keys = tokens * kv_heads * d
    return Work(
        "realign",
        f"{tokens:,} × {layers} layers",
        layers * (2 * keys * b + tokens * d * 4 + 16 * tokens),
        simple_ops=layers * 4 * keys,
    )


def simhash(tokens: int, dim: int, bits: int) -> Work:
    """One product, of which the signs are kept. Float32 takes three 16-bit-like products."""
    return Work(
        "LSH encode",
        f"{tokens:,} × {bits} bits",
        tokens * dim * 4 + dim * bits * 4 + tokens * bits / 8,
        matrix_flops=2 * 3 * 2 * tokens * dim * bits,  # TF32 runs at half the 16-bit rate
    )


def nearest(tokens: int, candidates: int, bits: int) -> Work:
    """Twelve instructions for each 32 bits that are compared, six for each pair's rank."""
    pairs = tokens * candidates
    return Work(
        "LSH top-1",
        f"{tokens:,} × {candidates:,}",
        (tokens + candidates) * bits / 8 + 8 * tokens,
        simple_ops=pairs * (12 * bits / 32 + 6),
    )


def pool_write(tokens: int, kv_heads: int, d: int, *, b: int = 2) -> Work:
    """Keys and values read and written."""
    return Work("pool write", f"{tokens:,}", 4 * tokens * kv_heads * d * b + 8 * tokens)


def works() -> list[Work]:
    """Each op at a shape of Llama-3-8B's attention, decode at ChunkAttention's and Hydragen's."""
    return [
        mixed_prefill(500, 5000, 32, 8, 128),
        mixed_prefill(5000, 5000, 32, 8, 128),
        decode(32, 1024, 1, 32, 32, 128),
        separate_decode(32, 1025, 32, 32, 128),
        decode(32, 4096, 1, 32, 32, 128),
        separate_decode(32, 4097, 32, 32, 128),
        decode(64, 16_384, 1, 32, 32, 128),
        separate_decode(64, 16_385, 32, 32, 128),
        merge(64, 2, 32, 128),
        realign(5000, 32, 8, 128),
        simhash(5000, 128, 256),
        nearest(5000, 5000, 256),
        pool_write(5000, 8, 128),
    ]


def table() -> str:
    """All of them as a markdown table."""
    lines = [
        "| op | shape | MB | GFLOP | A100 | H100 | limit (A100 / H100) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {work.op} | {work.shape} | {work.bytes / 1e6:,.1f} | {work.matrix_flops / 1e9:,.1f} "
        f"| {work.seconds(A100) * 1e6:,.1f} µs | {work.seconds(H100) * 1e6:,.1f} µs "
        f"| {work.limit(A100)} / {work.limit(H100)} |"
        for work in works()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())  # noqa: T201 - what it is for
