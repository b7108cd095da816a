"""Connections to Redis or Valkey whose every wait is bounded, and the map of a cluster's slots.

The client's own `RedisCluster` tries again and asks for the cluster's shape within a call, with a
time-out for each; here the time of a call is one budget, and a node that does not answer costs its
own keys only.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from semshare.errors import TierUnavailable
from semshare.kv.tiers.breaker import Breaker
from semshare.kv.tiers.redis_bounds import Client, bounded_client, seconds_left
from semshare.kv.tiers.redis_url import Address, names_cluster, parse

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Server:
    """One node: its connections, and whether it is worth asking."""

    address: str  # without credentials, for messages
    client: Client
    breaker: Breaker


class Servers:
    """One server, or the nodes of a cluster.

    Args:
        url: `redis://user:password@host:port/db`, `rediss://` with TLS, `unix://path`;
            `redis+cluster://` and `rediss+cluster://` name a cluster by one or more of its nodes,
            with commas between them.
        connect_s, command_s: most seconds for a connection, and for one wait of a command.
        make_breaker: one for each node.

    """

    def __init__(
        self,
        url: str,
        *,
        connect_s: float,
        command_s: float,
        make_breaker: Callable[[], Breaker],
    ) -> None:
        self._seeds, self._options = parse(url)
        self.cluster = names_cluster(url)
        self._connect_s = connect_s
        self._command_s = command_s
        self._make_breaker = make_breaker
        self._lock = threading.Lock()  # of the two below
        self._servers: dict[Address, Server] = {}
        self._starts: list[int] = []  # first slots, in order, of the cluster's ranges …
        self._owners: list[tuple[int, Address]] = []  # … and the last of each, with its node
        self._refresh = threading.Lock()
        self._closed = False

    def run(self, key: str, work: Callable[[Client], Result]) -> Result:
        """What `work` does with the node that has `key`.

        Raises:
            TierUnavailable: the node does not answer in time, refuses, or was not asked because it
                did not answer a moment ago.

        """
        try:
            return self.ask(self.server_of(key), work)
        except MovedError as moved:
            self._learn(first=(str(moved.host) or self._seeds[0][0], int(moved.port)))
        server = self.server_of(key)
        try:
            return self.ask(server, work)
        except MovedError as moved:
            raise TierUnavailable(
                f"the cluster's slots keep moving: {server.address} sends requests for one of them "
                "to another node; wait until the cluster has settled"
            ) from moved

    def command(self, key: str, *words: str | int | bytes) -> Any:
        """The answer of the node that has `key` to one command; errors as `run`."""
        return self.run(key, lambda client: client.execute_command(*words))

    def ask(self, server: Server, work: Callable[[Client], Result]) -> Result:
        """What `work` does with one node; its errors as `run` has them, and `MovedError`."""
        if self._closed:
            raise TierUnavailable(f"the tier over {server.address} was closed: make a new one")
        wait_s = server.breaker.seconds_to_wait()
        if wait_s:
            raise TierUnavailable(
                f"{server.address} did not answer a moment ago: it is asked again in {wait_s:.1f} s"
            )
        try:
            result = work(server.client)
        except MovedError:
            server.breaker.worked()
            raise
        except OutOfMemoryError as problem:
            server.breaker.worked()  # it still gives out what it has
            raise TierUnavailable(
                f"{server.address} has reached its own memory limit: set its maxmemory above this "
                "tier's budget"
            ) from problem
        except (AskError, TryAgainError) as problem:
            server.breaker.worked()
            raise TierUnavailable(
                f"{server.address} is handing a slot over to another node: try again later"
            ) from problem
        except ResponseError as problem:
            if isinstance(problem, ClusterDownError | ReadOnlyError):
                self._forget_slots()
            server.breaker.worked()
            raise TierUnavailable(f"{server.address} refused: {problem}") from problem
        except (RedisError, OSError) as problem:
            server.breaker.failed()
            self._forget_slots()
            raise TierUnavailable(
                f"{server.address} does not answer ({problem}): see whether it runs and can be "
                "reached from here"
            ) from problem
        server.breaker.worked()
        return result

    def server_of(self, key: str) -> Server:
        """The node that has `key`, as far as is known; asks for the slots where nothing is."""
        if not self.cluster:
            return self._server(self._seeds[0])
        slot = key_slot(key.encode())
        found = self._owner(slot)
        if found is None:
            self._learn()
            found = self._owner(slot)
        if found is None:
            raise TierUnavailable(
                f"no node of the cluster has slot {slot}: bring back the node that had it"
            )
        return self._server(found)

    def primaries(self) -> list[Server]:
        """Every node that has slots."""
        if not self.cluster:
            return [self._server(self._seeds[0])]
        if not self._starts:
            self._learn()
        with self._lock:
            addresses = {address for _, address in self._owners}
        return [self._server(address) for address in sorted(addresses)]

    def close(self) -> None:
        """Close all connections, also those that threads are waiting on, and open no more."""
        self._closed = True
        with self._lock:
            servers = list(self._servers.values())
        for server in servers:
            server.client.connection_pool.disconnect()

    def _owner(self, slot: int) -> Address | None:
        with self._lock:
            place = bisect.bisect_right(self._starts, slot) - 1
            if place < 0 or slot > self._owners[place][0]:
                return None
            return self._owners[place][1]

    def _forget_slots(self) -> None:
        """Ask again which node has what before the next call: one may have taken another's part."""
        with self._lock:
            self._starts, self._owners = [], []

    def _learn(self, first: Address | None = None) -> None:
        """Ask the nodes in turn for the map of slots, `first` before the others."""
        try:
            taken = self._refresh.acquire(timeout=seconds_left(self._command_s))
        except TimeoutError:
            taken = False
        if not taken:
            raise TierUnavailable("the cluster's slots are being asked for: try again later")
        try:
            if first is None and self._starts:
                return  # another thread has learned them meanwhile
            problem: TierUnavailable | None = None
            for address in self._to_ask(first):
                try:
                    self._take(self.ask(self._server(address), _cluster_slots), asked=address)
                except TierUnavailable as unavailable:
                    problem = unavailable
                else:
                    return
            raise problem or TierUnavailable("no node of the cluster is known")
        finally:
            self._refresh.release()

    def _to_ask(self, first: Address | None) -> Iterable[Address]:
        with self._lock:
            known = list(self._servers)
        return dict.fromkeys([*([first] if first else []), *known, *self._seeds])

    def _take(self, ranges: Any, *, asked: Address) -> None:
        found = sorted(
            (int(start), int(end), (_text(node[0]) or asked[0], int(node[1])))
            for start, end, node, *_ in ranges
        )
        with self._lock:
            self._starts = [start for start, _, _ in found]
            self._owners = [(end, address) for _, end, address in found]

    def _server(self, address: Address) -> Server:
        with self._lock:
            if address not in self._servers:
                self._servers[address] = Server(
                    address=f"{address[0]}:{address[1]}" if address[1] else address[0],
                    client=self._client(address),
                    breaker=self._make_breaker(),
                )
            return self._servers[address]

    def _client(self, address: Address) -> Client:
        return bounded_client(
            address, self._options, connect_s=self._connect_s, command_s=self._command_s
        )


def _cluster_slots(client: Client) -> Any:
    # The raw answer: its parsed form drops a node's address where the node does not know it.
    return client.execute_command("CLUSTER", "SLOTS")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
