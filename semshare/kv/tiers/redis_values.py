"""A donor's values in the server: its record, and its blobs in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from semshare.errors import TierUnavailable
from semshare.kv.tiers import redis_scripts
from semshare.kv.tiers.record_codec import MAX_RECORD_BYTES
from semshare.kv.tiers.redis_bounds import Client
from semshare.kv.tiers.redis_keys import Keys, Location
from semshare.kv.tiers.redis_link import Server, Servers
from semshare.kv.tiers.tier import Buffer, ByteRange

# A round trip asks for, or brings, about so much. More than one large value in a pipeline makes the
# parser of `hiredis` move what it has buffered: 0.4 GB/s were read that way, and 2.6 one by one.
# Reading over several connections in threads was no faster: copying in Python holds its lock.
_BATCH_BYTES = 1 << 20
_KEYS_A_COMMAND = 500
_RECORDS_A_PIPELINE = 64
_SCANNED_AT_ONCE = 1000
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes [start, stop) of one chunk, for one range of a read."""

    key: str
    start: int
    stop: int


class DonorValues:
    """Reads and writes donors' values. Each call is bounded by the `within` it is made in.

    Args:
        servers: where they are.
        keys: their names.

    """

    def __init__(self, servers: Servers, keys: Keys) -> None:
        self._servers = servers
        self._keys = keys

    def write(
        self,
        donor: str,
        where: Location,
        blobs: Sequence[Buffer],
        lease_over: Callable[[], float],
    ) -> None:
        """Write all chunks. They expire when the lease is over, until they are published.

        Args:
            donor, where: whose they are.
            blobs: of the sizes in `where`.
            lease_over: seconds until then.

        """

        def send(batch: Sequence[tuple[str, memoryview]]) -> None:
            # Rounded down: no value may outlive what counts its bytes.
            expires_ms = int(lease_over() * 1000)
            if expires_ms < 1:
                raise TierUnavailable(
                    f"writing {donor} took longer than its room was reserved for: the network to "
                    "the server is too slow for donors of this size"
                )

            def work(client: Client) -> None:
                pipeline = client.pipeline(transaction=False)
                for key, chunk in batch:
                    pipeline.set(key, chunk, px=expires_ms)
                pipeline.execute()

            self._servers.run(batch[0][0], work)

        for batch in _batches(self._chunks(donor, where, blobs), lambda item: len(item[1])):
            send(batch)

    def publish(
        self, donor: str, where: Location, record: bytes, *, expires_at_ms: str, again: bool = False
    ) -> bool:
        """Write the record and let all values stay, or expire; False where one is missing.

        `again` replaces a record that is there.
        """
        key = self._keys.record(donor, where)
        names = [key, *self._keys.chunks(donor, where)]
        mode = "again" if again else "new"
        script = redis_scripts.PUBLISH
        found = self._servers.command(
            key, "EVAL", script, len(names), *names, record, expires_at_ms, mode
        )
        return bool(found)

    def read(
        self, donor: str, where: Location, group: int, ranges: Sequence[ByteRange]
    ) -> list[bytes]:
        """The ranges of one blob; shorter ones where chunks are missing or have lost bytes."""
        pieces = [list(self._pieces(donor, where, group, one)) for one in ranges]
        flat = [piece for of_range in pieces for piece in of_range]
        batches = _batches(flat, lambda piece: piece.stop - piece.start)
        found = iter([value for batch in batches for value in self._fetch(batch)])
        return [_joined([next(found) for _ in of_range]) for of_range in pieces]

    def batches(
        self, wanted: Iterable[tuple[str, Location]]
    ) -> list[tuple[str, list[tuple[str, Location]]]]:
        """The same in lists for `records`, each with the address of its node."""
        of_node: dict[str, list[tuple[str, Location]]] = {}
        for donor, where in wanted:
            server = self._servers.server_of(self._keys.record(donor, where))
            of_node.setdefault(server.address, []).append((donor, where))
        return [
            (address, one[start : start + _RECORDS_A_PIPELINE])
            for address, one in of_node.items()
            for start in range(0, len(one), _RECORDS_A_PIPELINE)
        ]

    def records(self, wanted: Sequence[tuple[str, Location]]) -> list[bytes | None]:
        """Records of a batch; None where one, or a chunk of its donor, is missing."""

        def work(client: Client) -> list[bytes | int]:
            pipeline = client.pipeline(transaction=False)
            for donor, where in wanted:
                # One byte more than may be: too long a record shows, and is not read whole.
                pipeline.getrange(self._keys.record(donor, where), 0, MAX_RECORD_BYTES)
                pipeline.exists(self._keys.record(donor, where), *self._keys.chunks(donor, where))
            return list(pipeline.execute())

        found = self._servers.run(self._keys.record(*wanted[0]), work)
        whole: list[bytes | None] = []
        for (_, where), record, there in zip(wanted, found[::2], found[1::2], strict=True):
            n_values = 1 + sum(map(where.n_chunks, range(len(where.group_bytes))))
            whole.append(record if isinstance(record, bytes) and there == n_values else None)
        return whole

    def delete(self, donor: str, where: Location) -> None:
        """Delete all values of one generation."""
        names = [self._keys.record(donor, where), *self._keys.chunks(donor, where)]
        for start in range(0, len(names), _KEYS_A_COMMAND):
            some = names[start : start + _KEYS_A_COMMAND]
            self._servers.command(some[0], "UNLINK", *some)

    def sweep(self, known: Callable[[], set[str]]) -> int:
        """Delete the values of this model's donors that are of no known generation: how many.

        `known` is asked after each look at the server, so that what others write meanwhile stays.
        """
        return sum(self._sweep_node(server, known) for server in self._servers.primaries())

    def _sweep_node(self, server: Server, known: Callable[[], set[str]]) -> int:
        deleted, cursor = 0, 0
        while True:
            words = ("SCAN", cursor, "MATCH", self._keys.pattern, "COUNT", _SCANNED_AT_ONCE)
            cursor, names = self._servers.ask(server, partial(_execute, words))
            texts = [name.decode() for name in names]
            generations = known() if texts else set()
            for name in texts:
                if self._keys.generation_of(name) not in generations:
                    self._servers.command(name, "UNLINK", name)
                    deleted += 1
            if not cursor:
                return deleted

    def _chunks(
        self, donor: str, where: Location, blobs: Sequence[Buffer]
    ) -> Iterator[tuple[str, memoryview]]:
        for group, blob in enumerate(blobs):
            view = memoryview(blob).cast("B")
            for number in range(where.n_chunks(group)):
                start = number * where.chunk_bytes
                yield (
                    self._keys.chunk(donor, where, group, number),
                    view[start : start + where.chunk_bytes],
                )

    def _pieces(
        self, donor: str, where: Location, group: int, wanted: ByteRange
    ) -> Iterator[_Piece]:
        size = where.chunk_bytes
        if not len(wanted):
            return  # GETRANGE 0 -1 would be all of a value
        for number in range(wanted.start // size, -(-wanted.stop // size)):
            yield _Piece(
                self._keys.chunk(donor, where, group, number),
                max(0, wanted.start - number * size),
                min(size, wanted.stop - number * size),
            )

    def _fetch(self, batch: Sequence[_Piece]) -> list[bytes]:
        def work(client: Client) -> list[bytes]:
            pipeline = client.pipeline(transaction=False)
            for piece in batch:
                pipeline.getrange(piece.key, piece.start, piece.stop - 1)
            return list(pipeline.execute())

        return self._servers.run(batch[0].key, work)


def _execute(words: Sequence[str | int], client: Client) -> Any:
    return client.execute_command(*words)


def _batches(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in order, together as long as they stay under `_BATCH_BYTES`."""
    batch: list[Item] = []
    total = 0
    for item in items:
        if batch and total + size(item) > _BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def _joined(parts: Sequence[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)
