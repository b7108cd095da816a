"""A donor's KV as blobs, one for each group of layers: made whole, read in parts.

A blob is a safetensors file: a head (`semshare.kv.tiers.blob_head`), then the KV token by token, so
that any tokens that follow each other are one range of bytes. Tokens are checked, and compressed,
in chunks; whoever reads asks for chunks and is given nothing whose checksum is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from semshare.errors import BlobCorrupt, KVMismatch
from semshare.kv.tiers.blob_format import BlobFormat
from semshare.kv.tiers.blob_head import BlobLayout, Checksums, Offsets, checksum
from semshare.kv.tiers.tier import Buffer, ByteRange
from semshare.types import Ids

# Levels 1 and 3 come to the same size on KV, and 3 takes twice as long.
_LEVEL = 1

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDonor:
    """A donor's KV as a tier keeps it."""

    head_bytes: int  # of each blob
    blobs: tuple[Buffer, ...]  # by layer group

    @property
    def group_bytes(self) -> tuple[int, ...]:
        """Size of each blob."""
        return tuple(len(blob) for blob in self.blobs)


def encode_donor(
    kv_format: BlobFormat, ids: Ids, kv_of_layer: Callable[[int], tuple[Tensor, Tensor]]
) -> EncodedDonor:
    """Make a donor's blobs.

    Args:
        kv_format: what it is stored as.
        ids: `[n]` int32, at least one.
        kv_of_layer: gives a layer's keys and values, `[n, kv_heads, d]` each, on the CPU, in the
            format's dtype. Asked for each layer once, in order.

    Raises:
        KVMismatch: there are no tokens, or keys or values of another shape or dtype.
        InvalidRequest: int8 is wanted of numbers beyond what it can express.

    """
    if len(ids) == 0:
        raise KVMismatch("a donor without tokens: there is no KV to store, so don't store it")
    layouts = [BlobLayout(kv_format, group, len(ids)) for group in range(kv_format.n_groups)]
    blobs = tuple(_encode(layout, ids, kv_of_layer) for layout in layouts)
    return EncodedDonor(layouts[0].head_bytes, blobs)


def read_head(kv_format: BlobFormat, group: int, ids: Ids, head: Buffer) -> BlobHead:
    """What a blob holds and where, from its first `DonorRecord.head_bytes` bytes.

    Args:
        kv_format: this engine's; the blob must be of the same.
        group: which of the donor's blobs it is.
        ids: `[n]` int32, the donor's; the blob must be of the same.
        head: the bytes.

    Raises:
        BlobCorrupt: they are not what was written for these ids and this group.
        BlobForeign: they were written in another format; the message names both.

    """
    layout = BlobLayout(kv_format, group, len(ids))
    checksums, ends = layout.parse_head(ids, head)
    return BlobHead(layout, checksums, ends)


@dataclass(frozen=True, slots=True, eq=False)
class BlobHead:
    """A blob whose head was whole. `chunks` are numbers of chunks, ascending, none twice."""

    layout: BlobLayout
    checksums: Checksums  # [chunks] of each chunk as stored
    ends: Offsets  # [chunks] where each ends, from the head's end

    def ranges(self, chunks: Sequence[int]) -> list[ByteRange]:
        """The bytes of the blob to read for these chunks; neighbours are read as one."""
        return [ByteRange(self._start(run[0]), self._start(run[-1] + 1)) for run in _runs(chunks)]

    def decode(self, chunks: Sequence[int], parts: Sequence[Buffer]) -> Tensor:
        """The KV in these chunks, each of them checked first.

        Args:
            chunks: as they were given to `ranges`.
            parts: what a tier read for `ranges`.

        Returns:
            `[tokens of these chunks, layers of the group, 2, kv_heads, d]` in the model's dtype,
            keys before values. It shares no memory with `parts`.

        Raises:
            BlobCorrupt: a part is too short, or a chunk is not what was written.

        """
        stored = list(zip(chunks, self._split(chunks, parts), strict=True))
        kv_format, tokens = self.layout.format, sum(self._tokens(chunk) for chunk in chunks)
        raw = torch.empty(tokens * kv_format.token_bytes(self.layout.group), dtype=torch.uint8)
        out, start = raw.numpy(), 0
        for chunk, data in stored:
            # Checked and copied one after the other, while it is in the processor's cache.
            if checksum(data) != int(self.checksums[chunk]):
                raise self._corrupt(chunk, f"its {len(data)} bytes do not have their checksum")
            stop = start + self._tokens(chunk) * kv_format.token_bytes(self.layout.group)
            self._unpack(chunk, data, out[start:stop])
            start = stop
        shape = (tokens, *self.layout.shape[1:])
        if kv_format.coding == "full":
            return raw.view(kv_format.torch_dtype).view(shape)
        rows = kv_format.codec.decode(raw.view(-1, shape[-1]), kv_format.torch_dtype)
        return rows.view(*shape[:-1], kv_format.n_kv_heads, kv_format.head_dim)

    def _split(self, chunks: Sequence[int], parts: Sequence[Buffer]) -> Iterator[memoryview]:
        """The bytes of each chunk."""
        for run, part in zip(_runs(chunks), parts, strict=True):
            view, first = memoryview(part), self._start(run[0])
            if len(view) != (wanted := self._start(run[-1] + 1) - first):
                raise self._corrupt(run[0], f"{len(view)} bytes are left of {wanted} from there on")
            for chunk in run:
                yield view[self._start(chunk) - first : self._start(chunk + 1) - first]

    def _unpack(self, chunk: int, data: memoryview, out: Bytes) -> None:
        if self.layout.format.compression == "none":
            out[:] = np.frombuffer(data, np.uint8)
            return
        try:
            # Asked for first, since the library allocates what a frame says.
            if zstandard.frame_content_size(data) != len(out):
                raise self._corrupt(chunk, f"it does not unpack to {len(out)} bytes")
            planes = zstandard.ZstdDecompressor().decompress(data)
        except zstandard.ZstdError as error:
            raise self._corrupt(chunk, str(error)) from error
        _from_planes(planes, out, self.layout.format.row_dtype.itemsize)

    def _tokens(self, chunk: int) -> int:
        kept = self.layout.format.chunk_tokens
        return min(kept, self.layout.n - chunk * kept)

    def _start(self, chunk: int) -> int:
        """Where a chunk begins in the blob, and the one before it ends."""
        if not 0 <= chunk <= len(self.ends):
            raise IndexError(f"chunk {chunk} of a blob that has {len(self.ends)}")
        return self.layout.head_bytes + (int(self.ends[chunk - 1]) if chunk else 0)

    def _corrupt(self, chunk: int, what: str) -> BlobCorrupt:
        return BlobCorrupt(
            f"chunk {chunk} of layer group {self.layout.group} is not what was written: {what}; "
            "drop the donor, which is then computed anew"
        )


def _encode(
    layout: BlobLayout, ids: Ids, kv_of_layer: Callable[[int], tuple[Tensor, Tensor]]
) -> Buffer:
    """One blob."""
    compressed = layout.format.compression != "none"
    start = 0 if compressed else layout.head_bytes
    # The KV is written where it will stay, behind room for the head: 230 MB are copied once.
    blob = torch.empty(start + layout.payload_bytes, dtype=torch.uint8)
    _fill(layout, blob[start:].view(layout.format.row_dtype).view(layout.shape), kv_of_layer)
    payload = blob[start:].numpy()
    cuts = [0, *layout.plain_ends.tolist()]
    chunks: list[Buffer] = [payload[begin:end].data for begin, end in pairwise(cuts)]
    if compressed:
        packer = zstandard.ZstdCompressor(level=_LEVEL)
        itemsize = layout.format.row_dtype.itemsize
        chunks = [packer.compress(_to_planes(chunk, itemsize).data) for chunk in chunks]
    checksums = np.array([checksum(chunk) for chunk in chunks], np.uint64)
    ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
    head = layout.make_head(ids, checksums, ends)
    if compressed:
        return b"".join((head, *chunks))
    blob.numpy()[:start] = np.frombuffer(head, np.uint8)
    return blob.numpy().data


def _fill(
    layout: BlobLayout, kv: Tensor, kv_of_layer: Callable[[int], tuple[Tensor, Tensor]]
) -> None:
    """Write the group's layers into `kv`, which has the layout's shape."""
    kv_format = layout.format
    expected = (layout.n, kv_format.n_kv_heads, kv_format.head_dim)
    for index, layer in enumerate(kv_format.layers(layout.group)):
        for half, rows in enumerate(kv_of_layer(layer)):
            if rows.shape != expected or rows.dtype != kv_format.torch_dtype:
                raise KVMismatch(
                    f"layer {layer}: keys or values are {tuple(rows.shape)} {rows.dtype}, the "
                    f"format has {expected} {kv_format.torch_dtype}: store what the model computed"
                )
            kv[:, index, half] = (
                kv_format.codec.encode(rows) if kv_format.coding == "int8" else rows
            )


def _runs(chunks: Sequence[int]) -> list[list[int]]:
    """The chunks, those that follow each other together."""
    runs: list[list[int]] = []
    for chunk in chunks:
        if runs and runs[-1][-1] + 1 == chunk:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    return runs


def _to_planes(chunk: Buffer, itemsize: int) -> Bytes:
    """All first bytes of numbers, then all second ones, …: exponents lie together and compress."""
    numbers = np.frombuffer(chunk, np.uint8).reshape(-1, itemsize)
    return np.concatenate([numbers[:, byte] for byte in range(itemsize)])


def _from_planes(planes: bytes, out: Bytes, itemsize: int) -> None:
    """Undo `_to_planes`, into `out`."""
    for byte, plane in enumerate(np.frombuffer(planes, np.uint8).reshape(itemsize, -1)):
        out[byte::itemsize] = plane
