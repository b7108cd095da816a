"""How what the Redis tier keeps is named in the server.

`{…}` is a key's hash tag: keys with the same tag lie on the same node of a cluster. All of a donor
has one tag, and so has the ledger of a model. Each part is escaped or hashed, so that no namespace,
donor or fingerprint can end another's part early.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

PREFIX = "semshare:1"
_MOST_CHUNKS = 1 << 20  # of a donor, so that no entry makes anybody list keys without end
_DIGEST_BYTES = 20  # finding two namespaces with one digest takes 2⁸⁰ tries


def escaped(text: str) -> str:
    """`text` in letters, digits, `_`, `-`, `~` and `%`, different for different texts."""
    # A dot separates the parts of a tag; quote() leaves it as it is.
    return quote(text, safe="").replace(".", "%2E")


def unescaped(text: str) -> str:
    """What `escaped` made this of."""
    return unquote(text)


def namespace_digest(namespace: str) -> str:
    """40 hexadecimal digits that stand for a namespace, whatever characters it has."""
    return hashlib.blake2b(namespace.encode(), digest_size=_DIGEST_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class Location:
    """Where one generation of a donor lies. A donor that is put again gets another generation."""

    generation: str  # 16 hexadecimal digits
    namespace: str  # its digest
    chunk_bytes: int
    group_bytes: tuple[int, ...]

    def encode(self) -> str:
        """As it stands in the ledger, which reads no more of it than the first word."""
        sizes = ",".join(map(str, self.group_bytes))
        return f"{self.generation} {self.namespace} {self.chunk_bytes} {sizes}"

    @classmethod
    def decode(cls, text: str) -> Self:
        """What `encode` made this of. Raises `ValueError` where it is something else."""
        generation, namespace, chunk_bytes, sizes = text.split(" ")
        groups = tuple(int(size) for size in sizes.split(",") if size)
        size = int(chunk_bytes)
        if size < 1 or min(groups, default=0) < 0 or sum(groups) > _MOST_CHUNKS * size:
            raise ValueError(f"{text!r} has a negative size, or chunks of no bytes, or too many")
        return cls(generation, namespace, size, groups)

    def n_chunks(self, group: int) -> int:
        """Values that a group's blob is cut into."""
        return -(-self.group_bytes[group] // self.chunk_bytes)


class Keys:
    """The keys of one model's donors.

    Args:
        fingerprint: of the model, `semshare.engine.fingerprint`.

    """

    def __init__(self, fingerprint: str) -> None:
        self._model = escaped(fingerprint)
        # KEYS[1] to KEYS[6] of the scripts in `redis_scripts`.
        self.ledger = tuple(
            f"{PREFIX}:{{{self._model}}}:{part}"
            for part in ("donors", "lru", "expiry", "leases", "sums", "events")
        )
        self.donors, self.lru, _, self.leases, self.sums, self.events = self.ledger
        self.pattern = f"{PREFIX}:{{{self._model}.*"  # of all donors' values

    def record(self, donor: str, where: Location) -> str:
        """The key of a donor's record."""
        return f"{self._tagged(donor, where)}:record"

    def chunk(self, donor: str, where: Location, group: int, number: int) -> str:
        """The key of one chunk of a group's blob."""
        return f"{self._tagged(donor, where)}:{group}.{number}"

    def chunks(self, donor: str, where: Location) -> Iterator[str]:
        """The keys of all chunks, group by group."""
        for group in range(len(where.group_bytes)):
            for number in range(where.n_chunks(group)):
                yield self.chunk(donor, where, group, number)

    def generation_of(self, key: str) -> str | None:
        """Of a record's or a chunk's key; None for others."""
        parts = key.split(":")
        return parts[3] if len(parts) == 5 else None

    def _tagged(self, donor: str, where: Location) -> str:
        tag = f"{self._model}.{where.namespace}.{escaped(donor)}"
        return f"{PREFIX}:{{{tag}}}:{where.generation}"
