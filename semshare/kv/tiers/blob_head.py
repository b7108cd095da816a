"""A blob's head: the safetensors header and the small tensors, sealed by a checksum.

`docs/storage.md` shows it byte by byte. How long a head is follows from the format and the number
of tokens, so that a reader knows what to ask for; whatever else it says is compared with what this
engine would have written, and nothing is allocated by a number that was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from semshare.errors import BlobCorrupt, BlobForeign
from semshare.kv.tiers.blob_format import BlobFormat
from semshare.kv.tiers.tier import Buffer
from semshare.types import Ids

MAGIC: Final = "semshare-kv"
VERSION: Final = 1
ALIGNED: Final = 64  # a head's length is a multiple of it, and so are addresses in the file behind
_LENGTH_BYTES: Final = 8  # of the JSON, as safetensors begins
_SEAL_BYTES: Final = 8
_DTYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Offsets = NDArray[np.int64]
Checksums = NDArray[np.uint64]


def checksum(data: Buffer) -> int:
    """XXH3 in 64 bits. It finds damage, not forgery."""
    return xxhash.xxh3_64_intdigest(data)


@dataclass(frozen=True, slots=True)
class BlobLayout:
    """Where everything lies in one blob: that of a layer group of a donor of n ≥ 1 tokens."""

    format: BlobFormat
    group: int
    n: int

    @property
    def n_chunks(self) -> int:
        """Each of `chunk_tokens` tokens, but perhaps the last."""
        return -(-self.n // self.format.chunk_tokens)

    @property
    def chunk_bytes(self) -> int:
        """Of a full chunk that is not compressed."""
        return self.format.chunk_tokens * self.format.token_bytes(self.group)

    @property
    def payload_bytes(self) -> int:
        """Of all chunks, not compressed."""
        return self.n * self.format.token_bytes(self.group)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the payload, not compressed."""
        return (self.n, len(self.format.layers(self.group)), 2, *self.format.row_shape)

    @property
    def head_bytes(self) -> int:
        """Length of the head, the same for all groups of a donor."""
        layouts = (BlobLayout(self.format, group, self.n) for group in range(self.format.n_groups))
        longest = max(len(_json(layout._header(layout._most_payload))) for layout in layouts)
        return -(-(_LENGTH_BYTES + longest + self._tensor_bytes) // ALIGNED) * ALIGNED

    @property
    def plain_ends(self) -> Offsets:
        """Where each chunk ends if none is compressed, `[chunks]`, from the head's end."""
        ends = np.arange(1, self.n_chunks + 1, dtype=np.int64) * self.chunk_bytes
        ends[-1] = self.payload_bytes
        return ends

    def make_head(self, ids: Ids, checksums: Checksums, ends: Offsets) -> bytes:
        """A blob's first `head_bytes` bytes.

        Args:
            ids: `[n]` int32.
            checksums: `[chunks]`, of each chunk as it is stored.
            ends: `[chunks]`, where each ends, from the head's end.

        """
        room = self.head_bytes - _LENGTH_BYTES - self._tensor_bytes
        unsealed = b"".join(
            (
                room.to_bytes(_LENGTH_BYTES, "little"),
                _json(self._header(int(ends[-1]))).ljust(room),  # safetensors allows the spaces
                checksums.astype("<u8").tobytes(),
                ends.astype("<u8").tobytes() if self._compressed else b"",
                ids.astype("<i4").tobytes(),
                bytes(self._padding),
            )
        )
        return unsealed + checksum(unsealed).to_bytes(_SEAL_BYTES, "little")

    def parse_head(self, ids: Ids, head: Buffer) -> tuple[Checksums, Offsets]:
        """The checksums and ends that `make_head` was given.

        Raises:
            BlobCorrupt: these bytes are not what was written for these ids.
            BlobForeign: they were written in another format.

        """
        view = memoryview(head)
        if len(view) <= _LENGTH_BYTES + _SEAL_BYTES:
            raise self._corrupt(f"only {len(view)} bytes are there")
        if checksum(view[:-_SEAL_BYTES]) != int.from_bytes(view[-_SEAL_BYTES:], "little"):
            raise self._corrupt(f"{len(view)} bytes do not have the checksum they end with")
        header = _parsed(view)
        metadata = header.get("__metadata__") if isinstance(header, dict) else None
        if not isinstance(metadata, dict) or metadata.get("format") != MAGIC:
            raise self._corrupt(f"it does not say that it is {MAGIC!r}")
        self._compare(metadata)
        if len(view) != self.head_bytes:
            raise self._corrupt(f"{len(view)} bytes instead of {self.head_bytes}")
        tensors = view[-self._tensor_bytes :]
        checksums = np.frombuffer(tensors, "<u8", self.n_chunks).astype(np.uint64)
        ends, read = self.plain_ends, checksums.nbytes
        if self._compressed:
            stored = np.frombuffer(tensors, "<u8", self.n_chunks, read)
            # Compared before they become signed, so that no difference wraps around.
            if np.any(stored[1:] < stored[:-1]) or int(stored[-1]) > self._most_payload:
                raise self._corrupt(f"chunks that end at {stored.tolist()}")
            ends, read = stored.astype(np.int64), read + stored.nbytes
        if header != self._header(int(ends[-1])):
            raise self._corrupt(f"its tensors are not those of {self.n} tokens")
        if not np.array_equal(np.frombuffer(tensors, "<i4", self.n, read), ids):
            raise self._corrupt("it is of other token ids than the donor's")
        return checksums, ends

    @property
    def _compressed(self) -> bool:
        return self.format.compression != "none"

    @property
    def _padding(self) -> int:
        """Zeros before the seal, so that every tensor begins at a multiple of its numbers' size."""
        return 4 * self.n % 8

    @property
    def _tensor_bytes(self) -> int:
        """Of all tensors in the head."""
        tables = 2 if self._compressed else 1
        return 8 * tables * self.n_chunks + 4 * self.n + self._padding + _SEAL_BYTES

    @property
    def _most_payload(self) -> int:
        """Zstandard's bound (`ZSTD_compressBound`) for data that does not compress."""
        return self.payload_bytes + self.payload_bytes // 256 + 64 * self.n_chunks

    def _header(self, payload: int) -> dict[str, object]:
        """The JSON of a blob whose chunks take `payload` bytes."""
        table, seal = 8 * self.n_chunks, self._padding + _SEAL_BYTES
        tensors: list[tuple[str, str, list[int], int]] = [("checksums", "U64", [table // 8], table)]
        if self._compressed:
            tensors.append(("ends", "U64", [table // 8], table))
        tensors += [("ids", "I32", [self.n], 4 * self.n), ("seal", "U8", [seal], seal)]
        if self._compressed:
            tensors.append(("kv", "U8", [payload], payload))
        else:
            dtype = "U8" if self.format.coding == "int8" else _DTYPES[self.format.dtype]
            tensors.append(("kv", dtype, list(self.shape), payload))
        header: dict[str, object] = {
            "__metadata__": {"format": MAGIC, **_settings(self.format), **self._place()}
        }
        start = 0
        for name, dtype, shape, size in tensors:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
            start += size
        return header

    def _place(self) -> dict[str, str]:
        """Which of a donor's blobs it is."""
        layers = self.format.layers(self.group)
        return {"layers": f"{layers.start}-{layers.stop - 1}", "tokens": str(self.n)}

    def _compare(self, found: Mapping[str, object]) -> None:
        for key, ours in _settings(self.format).items():
            if found.get(key) != ours:
                raise BlobForeign(
                    f"layer group {self.group} was stored with {key} {found.get(key)!r}, this "
                    f"engine has {ours!r}: start it as it was when it stored this, or drop the "
                    "donor, which is then computed anew"
                )
        for key, ours in self._place().items():
            if found.get(key) != ours:
                raise self._corrupt(f"it says {key} {found.get(key)!r} instead of {ours!r}")

    def _corrupt(self, what: str) -> BlobCorrupt:
        return BlobCorrupt(
            f"the head of layer group {self.group} is not what was written: {what}; drop the "
            "donor, which is then computed anew"
        )


def _settings(format_: BlobFormat) -> dict[str, str]:
    """What blobs must have in common, the version first, which says what the rest means."""
    return {
        "version": str(VERSION),
        "fingerprint": format_.fingerprint,
        "rope": format_.rope,
        "dtype": format_.dtype,
        "n_layers": str(format_.n_layers),
        "n_kv_heads": str(format_.n_kv_heads),
        "head_dim": str(format_.head_dim),
        "coding": format_.coding,
        "compression": format_.compression,
        "chunk_tokens": str(format_.chunk_tokens),
        "layers_per_group": str(format_.layers_per_group),
    }


def _json(header: Mapping[str, object]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _parsed(head: memoryview) -> object:
    """The JSON in a head; None where there is none."""
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    try:
        return json.loads(bytes(head[_LENGTH_BYTES : _LENGTH_BYTES + length]))
    except (ValueError, RecursionError):
        return None
