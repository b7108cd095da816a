"""KV as a stream of msgpack objects: a header, one object a layer, and a checksum at the end.

docs/wire.md has it byte by byte. What a decoder holds at a time is one layer, and how large that
may be is known from the header, which is itself bounded by the model it must fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from semshare.errors import InvalidRequest, KVMismatch
from semshare.types import Ids, TokenSource

if TYPE_CHECKING:
    from semshare.kv.exchange import KVFormat

SCHEMA = "semshare.kv/1"
CONTENT_TYPE = "application/vnd.semshare.kv+msgpack"
CHECKSUM_BYTES = 32  # of BLAKE2b

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FIELDS = ("schema", "fingerprint", "model", "dtype", "shape", "ids", "exact", "source")
_ID_BYTES = 4  # int32, little-endian
_MAX_NAME = 512  # bytes of a string in the header
_HEADER_OVERHEAD = 4096  # bytes of a header besides ids and sources
# Bytes of an object besides its tensors, in msgpack's longest encoding of the rest.
_LAYER_OVERHEAD = 64
_END_OVERHEAD = 64
_READ_BYTES = 1 << 16
# What msgpack raises for bytes that are none of its, or beyond the limits it was given.
_MALFORMED = (ValueError, TypeError, RecursionError, msgpack.UnpackException)


@dataclass(frozen=True, slots=True, eq=False)
class KVHeader:
    """What a stream holds; n is the number of tokens.

    fingerprint: of the model that computed it.
    model:       the name it goes by, for people.
    dtype:       `float32`, `bfloat16` or `float16`.
    """

    fingerprint: str
    model: str
    dtype: str
    n_layers: int
    n_kv_heads: int
    head_dim: int
    ids: Ids  # [n]
    source: NDArray[np.uint8]  # [n] TokenSource

    @property
    def exact(self) -> bool:
        """Whether nothing in it is approximate."""
        return bool(np.all(self.source <= TokenSource.PREFIX))

    @property
    def layer_shape(self) -> tuple[int, int, int]:
        """Of a layer's keys, and of its values."""
        return len(self.ids), self.n_kv_heads, self.head_dim

    @property
    def tensor_bytes(self) -> int:
        """Of a layer's keys, and as many of its values."""
        return len(self.ids) * self.n_kv_heads * self.head_dim * _ITEM_BYTES[self.dtype]

    def most_bytes(self, header_bytes: int) -> int:
        """The longest that a stream can be that begins with this header of so many bytes."""
        layers = self.n_layers * (2 * self.tensor_bytes + _LAYER_OVERHEAD)
        return header_bytes + layers + _END_OVERHEAD

    def check_fits(self, wanted: KVFormat) -> None:
        """Raise `KVMismatch` where a model can't take this KV as its own."""
        found = (self.fingerprint, self.dtype, self.n_layers, self.n_kv_heads, self.head_dim)
        names = ("fingerprint", "dtype", "n_layers", "n_kv_heads", "head_dim")
        for name, one in zip(names, found, strict=True):
            if one != getattr(wanted, name):
                raise KVMismatch(
                    f"the KV's {name} is {one!r}: this model's is {getattr(wanted, name)!r}; send "
                    "KV of the same weights in the same dtype"
                )
        if not self.exact:
            reused = int(np.count_nonzero(self.source > TokenSource.PREFIX))
            raise KVMismatch(
                f"{reused} tokens of the KV are approximate: only exact KV can become a donor; "
                "prefill the prompt with the mode off or prefix"
            )


def encode(header: KVHeader, layers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The stream piece by piece: the header, then a piece for each layer, then the end.

    Args:
        header: what comes.
        layers: keys and values of each layer, `header.tensor_bytes` each; taken one at a time.

    """
    first = _pack(
        {
            "schema": SCHEMA,
            "fingerprint": header.fingerprint,
            "model": header.model,
            "dtype": header.dtype,
            "shape": [header.n_layers, *header.layer_shape],
            "ids": header.ids.astype("<i4").tobytes(),
            "exact": header.exact,
            "source": header.source.tobytes(),
        }
    )
    checksum = _checksum(first)
    yield first
    for index, (key, value) in enumerate(layers):
        checksum.update(key)
        checksum.update(value)
        yield _pack({"layer": index, "key": key, "value": value})
    yield _pack({"checksum": checksum.digest()})


class HeaderReader:
    """Finds the header at the beginning of a stream that comes in parts.

    Args:
        limits: of the model it should fit; a header can't be longer than its longest prompt needs.

    """

    def __init__(self, limits: KVFormat) -> None:
        self._max_tokens = limits.max_tokens
        self._most = _HEADER_OVERHEAD + (_ID_BYTES + 1) * limits.max_tokens
        self._fed = 0
        self._unpacker = msgpack.Unpacker(
            raw=False,
            strict_map_key=True,
            max_buffer_size=0,  # parts are as long as they are, and forgotten once the header ends
            max_str_len=_MAX_NAME,
            max_bin_len=_ID_BYTES * limits.max_tokens,
            max_array_len=4,
            max_map_len=len(_FIELDS),
            max_ext_len=0,
        )

    @property
    def length(self) -> int:
        """Bytes of the header, once it has been found."""
        return int(self._unpacker.tell())

    def feed(self, part: bytes) -> KVHeader | None:
        """The header, if it ends within `part`, which goes on where the last one ended.

        Raises:
            InvalidRequest: it is malformed, or longer than it may be.

        """
        part = part[: self._most + 1 - self._fed]
        self._fed += len(part)
        self._unpacker.feed(part)
        try:
            fields = self._unpacker.unpack()
        except msgpack.OutOfData:
            if self._fed > self._most:
                raise InvalidRequest(
                    f"the KV's header is over {self._most} bytes: that is the most for "
                    f"{self._max_tokens} tokens, which this model takes"
                ) from None
            return None
        except _MALFORMED as error:
            raise InvalidRequest(
                f"the KV's header is not msgpack within the limits ({type(error).__name__}): "
                f"strings of {_MAX_NAME} bytes, {self._max_tokens} tokens; see docs/wire.md"
            ) from None
        return _checked_header(fields)


def read_layers(
    file: IO[bytes], header: KVHeader, header_bytes: int
) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of each layer of a stream, one at a time.

    Ends only where the stream does, with the right checksum: whoever uses a layer before that must
    be able to undo it.

    Args:
        file: at the stream's beginning.
        header: the stream's.
        header_bytes: its length.

    Raises:
        InvalidRequest: malformed, too short or too long, or the checksum is another one.

    """
    size = header.tensor_bytes
    checksum = _checksum(file.read(header_bytes))
    unpacker = msgpack.Unpacker(
        file,
        raw=False,
        strict_map_key=True,
        read_size=_READ_BYTES,
        max_buffer_size=2 * size + 2 * _READ_BYTES,
        max_str_len=_LAYER_OVERHEAD,
        max_bin_len=max(size, CHECKSUM_BYTES),
        max_array_len=0,
        max_map_len=3,
        max_ext_len=0,
    )
    for index in range(header.n_layers):
        found = _next_object(unpacker, ("layer", "key", "value"), f"layer {index}")
        if type(found["layer"]) is not int or found["layer"] != index:
            raise InvalidRequest(f"the object after {index} layers is not layer {index}")
        for name in ("key", "value"):
            tensor = found[name]
            if type(tensor) is not bytes or len(tensor) != size:
                raise InvalidRequest(
                    f"the {name} of layer {index} is not a binary string of {size} bytes, which "
                    f"{header.layer_shape} {header.dtype} takes"
                )
            checksum.update(tensor)
        yield found["key"], found["value"]
    end = _next_object(unpacker, ("checksum",), "the end")
    if end["checksum"] != checksum.digest():
        raise InvalidRequest("the KV's checksum does not fit what was sent: send it again")
    if unpacker.read_bytes(1):
        raise InvalidRequest("bytes follow the KV's end: send one stream a request")


def _next_object(unpacker: Any, names: tuple[str, ...], what: str) -> Mapping[str, Any]:
    try:
        found = unpacker.unpack()
    except msgpack.OutOfData:
        raise InvalidRequest(f"the KV breaks off before {what} is complete") from None
    except _MALFORMED as error:
        raise InvalidRequest(
            f"{what} of the KV is not msgpack within the header's limits ({type(error).__name__}): "
            "see docs/wire.md"
        ) from None
    if not isinstance(found, dict) or set(found) != set(names):
        raise InvalidRequest(f"{what} of the KV is not a map of {', '.join(names)}")
    return found


def _checked_header(fields: object) -> KVHeader:
    if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
        raise InvalidRequest(f"the KV's header is not a map of {', '.join(_FIELDS)}")
    if fields["schema"] != SCHEMA:
        raise InvalidRequest(f"the KV's schema is not {SCHEMA!r}, the one this service reads")
    for name in ("fingerprint", "model"):
        if not isinstance(fields[name], str):
            raise InvalidRequest(f"{name} of the KV's header is not a string")
    if not isinstance(fields["dtype"], str) or fields["dtype"] not in _ITEM_BYTES:
        raise InvalidRequest(f"dtype of the KV's header is none of {', '.join(_ITEM_BYTES)}")
    shape, ids, source = fields["shape"], fields["ids"], fields["source"]
    if not isinstance(shape, list) or len(shape) != 4:
        raise InvalidRequest("shape of the KV's header is not [layers, tokens, kv_heads, head_dim]")
    # No model is larger; the product of such numbers takes no memory before it is compared.
    if not all(type(one) is int and 1 <= one < 1 << 20 for one in shape):
        raise InvalidRequest("shape of the KV's header holds other than whole numbers from 1 on")
    layers, n, kv_heads, head_dim = shape
    for name, found, length in (("ids", ids, _ID_BYTES * n), ("source", source, n)):
        if type(found) is not bytes or len(found) != length:
            raise InvalidRequest(
                f"{name} of the KV's header is not a binary string of {length} bytes"
            )
    header = KVHeader(
        fingerprint=fields["fingerprint"],
        model=fields["model"],
        dtype=fields["dtype"],
        n_layers=layers,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        ids=np.frombuffer(ids, dtype="<i4").astype(np.int32),
        source=np.frombuffer(source, dtype=np.uint8),
    )
    if int(header.source.max()) >= len(TokenSource):
        raise InvalidRequest(f"source of the KV's header holds numbers over {len(TokenSource) - 1}")
    if fields["exact"] is not header.exact:
        raise InvalidRequest("exact of the KV's header is not what its source says")
    return header


def _checksum(header: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(header, digest_size=CHECKSUM_BYTES)


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
