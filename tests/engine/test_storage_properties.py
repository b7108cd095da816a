"""Whatever tiers do, and whatever is asked meanwhile: storage costs reuse, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from below import Moody, settle
from invariants import LIMIT, assert_consistent, assert_exact, kv_by_full_prefill
from prompts import reworded, words
from tiny import tiny_engine

from semshare import DonorInfo, PoolExhausted, ReusePolicy, SemShare, StorageConfig
from semshare.engine import storage_setup

NAMESPACES = ("a", "b")
OFF, PREFIX = ReusePolicy(mode="off"), ReusePolicy(mode="prefix")
LOOSE = ReusePolicy(min_span=8, min_similarity=0.0, sink_tokens=0, tail_tokens=4)
POLICIES = (
    PREFIX,
    PREFIX,
    replace(LOOSE, mode="span"),
    replace(LOOSE, mode="span", repair="eager", remember=True),
    replace(LOOSE, mode="span", selection="deviation", recompute=0.2),
    replace(LOOSE, mode="semantic", selection="query_attention", recompute=0.2),
    replace(LOOSE, mode="span", retention=0.5),
)
PAGES, PAGE = 80, 8


def pieces() -> list[str]:
    """Texts of 40 to 120 tokens, some of them rewordings of others."""
    texts = [words(40 + 16 * seed, 500 + seed) for seed in range(5)]
    return [*texts, reworded(texts[4], 1), reworded(texts[3], 2)]


PIECES = pieces()
REFERENCE: dict[str, torch.Tensor] = {}
LOCK = threading.Lock()


@pytest.fixture(scope="module")
def reference() -> SemShare:
    return tiny_engine()


@dataclass
class Life:
    """An engine, restarted now and then, over tiers that outlive it, and what may be in it.

    reference:  computes every prompt by itself.
    tiers:      the fastest first.
    rng:        draws what happens.
    may_be:     donors that were asked for and not taken back, by namespace and id.
    must_be:    of these, the ids that a tier which never damages anything has.
    """

    reference: SemShare
    tiers: list[Moody]
    rng: np.random.Generator
    config: dict[str, Any]
    now: float = 1_000.0
    may_be: dict[str, dict[str, DonorInfo]] = field(default_factory=dict)
    must_be: set[str] = field(default_factory=set)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = self._open()

    def _open(self) -> SemShare:
        upper, lower = self.tiers[0], self.tiers[-1]
        with (
            mock.patch.object(storage_setup, "HostTier", return_value=upper),
            mock.patch.object(storage_setup, "DiskTier", return_value=lower),
        ):
            return tiny_engine(now=lambda: self.now, **self.config)

    # ------------------------------------------------------------------ draws

    def any_of(self, several: Any) -> Any:
        return several[self.rng.integers(len(several))]

    def prompt(self) -> str:
        return "".join(self.any_of(PIECES) for _ in range(self.rng.integers(1, 4)))

    def act(self) -> None:
        """Something happens; then everything is as it may be."""
        acts: list[Callable[[], object]] = [
            self.remember,
            self.remember,
            self.ask,
            self.ask,
            self.ask,
            self.ask_several,
            self.ask_together,
            self.read,
            self.ask_as_a_stranger,
            self.forget,
            self.forget_all,
            self.publish,
            self.change,
            self.wait,
            self.push_out,
            self.push_out,
            self.spoil,
            self.spoil,
            self.heal,
            self.restart,
        ]
        what = self.any_of(acts)
        self.done.append(what.__name__)
        what()
        self.check()

    # -------------------------------------------------------------- what is asked

    def remember(self) -> None:
        namespace, text = self.any_of(NAMESPACES), self.prompt()
        ttl_s = self.any_of([None, None, 50.0])
        pinned = not self._pinned() and len(text) <= 150 and self.rng.random() < 0.3
        known = {info.id for info in self.engine.donors(namespace=namespace)}
        info = self.engine.remember(text, namespace=namespace, pinned=pinned, ttl_s=ttl_s)
        self.may_be.setdefault(namespace, {})[info.id] = info
        if info.id not in known:
            self.must_be.discard(info.id)  # it is new, and not written yet

    def _pinned(self) -> bool:
        return any(info.pinned for of_one in self.may_be.values() for info in of_one.values())

    def ask(self, *, full_pool: bool = False) -> None:
        self._ask(self.any_of(NAMESPACES), self.prompt(), self.any_of(POLICIES), full_pool)

    def _ask(self, namespace: str, prompt: str, policy: ReusePolicy, full_pool: bool) -> None:
        policy = replace(policy, remember=False)
        try:
            got = self.engine.score(prompt, "again", policy=policy, namespace=namespace)
        except PoolExhausted:
            if not full_pool:
                raise
            return
        if got.provenance.exact:
            assert (got.logits - self.full(prompt)).abs().max() < LIMIT
        else:
            assert policy.mode != "prefix"
        self.assert_may_read(namespace, got.provenance.donors)

    def full(self, prompt: str) -> torch.Tensor:
        """The logits of a full prefill."""
        with LOCK:
            if prompt not in REFERENCE:
                REFERENCE[prompt] = self.reference.score(prompt, "again", policy=OFF).logits
            return REFERENCE[prompt]

    def assert_may_read(self, namespace: str, donors: Any) -> None:
        own = self.may_be.get(namespace, {})
        published = {
            info.id for of_one in self.may_be.values() for info in of_one.values() if info.published
        }
        assert set(donors) <= {*own, *published}, "a donor of another namespace"

    def ask_several(self) -> None:
        namespace, policy = self.any_of(NAMESPACES), self.any_of(POLICIES)
        prompts = [self.prompt() for _ in range(3)]
        answers = self.engine.generate_many(
            prompts, max_tokens=3, policy=policy, namespace=namespace
        )
        for answer in answers:
            self.assert_may_read(namespace, answer.provenance.donors)
            if answer.donor is not None:
                self.may_be.setdefault(namespace, {}).setdefault(answer.donor.id, answer.donor)
        for prompt in prompts:
            self._ask(namespace, prompt, PREFIX, full_pool=False)

    def ask_together(self) -> None:
        calls = [
            partial(self._ask, self.any_of(NAMESPACES), self.prompt(), self.any_of(POLICIES), True)
            for _ in range(3)
        ]
        with ThreadPoolExecutor(3) as threads:
            for call in [threads.submit(call) for call in calls]:
                call.result(60)

    def read(self) -> None:
        """Another engine reads the KV of a prompt."""
        prompt, layer = self.prompt(), int(self.rng.integers(4))
        with self.engine.prefill(prompt, policy=PREFIX, namespace=self.any_of(NAMESPACES)) as held:
            got = held.layer(layer)
            keys, values = kv_by_full_prefill(self.reference, held.ids)[layer]
            assert (got.key - keys).abs().max() < LIMIT
            assert (got.value - values).abs().max() < LIMIT

    def ask_as_a_stranger(self) -> None:
        policy = replace(self.any_of(POLICIES), remember=False)
        got = self.engine.score(self.prompt(), "again", policy=policy, namespace="stranger")
        self.assert_may_read("stranger", got.provenance.donors)
        if not self.engine.library.published.donors:
            assert got.provenance.reused == 0
        self.engine.forget_all("stranger")

    # ------------------------------------------------------- what is said of donors

    def _some_donor(self) -> tuple[str, DonorInfo] | None:
        found = [(name, info) for name in NAMESPACES for info in self.engine.donors(namespace=name)]
        return self.any_of(found) if found else None

    def forget(self) -> None:
        if found := self._some_donor():
            self._take_back(*found)
            self.engine.forget(found[1].id, namespace=found[0])

    def _take_back(self, namespace: str, info: DonorInfo) -> None:
        del self.may_be[namespace][info.id]
        self.must_be.discard(info.id)

    def forget_all(self) -> None:
        namespace = self.any_of(NAMESPACES)
        for info in list(self.may_be.get(namespace, {}).values()):
            self._take_back(namespace, info)
        self.engine.forget_all(namespace)

    def publish(self) -> None:
        if found := self._some_donor():
            namespace, info = found
            self.may_be[namespace][info.id] = self.engine.publish(info.id, namespace=namespace)

    def change(self) -> None:
        if found := self._some_donor():
            namespace, info = found
            changes: dict[str, Any] = {"ttl_s": self.any_of([None, 80.0])}
            if info.pinned or (not self._pinned() and info.tokens <= 150):
                changes = {"pinned": not info.pinned}
            self.may_be[namespace][info.id] = self.engine.update_donor(
                info.id, namespace=namespace, **changes
            )

    def wait(self) -> None:
        """Time passes."""
        self.now += 20.0
        for namespace, of_one in self.may_be.items():
            for info in list(of_one.values()):
                if info.expires is not None and info.expires <= self.now:
                    self._take_back(namespace, info)

    # ----------------------------------------------------------- what befalls tiers

    def push_out(self) -> None:
        """All leaves the pool that may."""
        engine = self.engine
        if self.healthy:
            settle(engine)
        with engine.session.lock:
            free = engine.pool.n_pages
            while free:
                try:
                    engine.pool.release(engine.pool.allocate(free * PAGE))
                except PoolExhausted:
                    free -= 1
                else:
                    return

    @property
    def healthy(self) -> bool:
        return not any(tier.down or not tier.held.is_set() for tier in self.tiers)

    def spoil(self) -> None:
        tier = self.any_of(self.tiers)
        how = self.any_of(["down", "stuck", "damage", "stuck and down"])
        if how == "damage":
            tier.damage = lambda part: bytes(part[:-1]) + bytes([part[-1] ^ 1])
            self.must_be.clear()
        if "down" in how:
            tier.down = True
        if "stuck" in how:
            tier.held.clear()

    def heal(self) -> None:
        """All tiers are well, and have what they should have."""
        for tier in self.tiers:
            tier.damage = lambda part: part
            tier.down = False
            tier.held.set()
        settle(self.engine)
        settle(self.engine)
        self.must_be = {info.id for name in NAMESPACES for info in self.infos(name)}
        with self.engine.session.lock:
            assert not self.engine.pool.arrivals
            assert not self.engine.pool.departures
        held = {record.id for tier in self.tiers for record in tier.records()}
        assert held >= self.must_be, "a donor is in no tier though all are well"
        assert held <= {id_ for of_one in self.may_be.values() for id_ in of_one}

    def infos(self, namespace: str) -> list[DonorInfo]:
        return [
            replace(info, last_used=0.0, created=0.0)
            for info in self.engine.donors(namespace=namespace)
        ]

    def restart(self) -> None:
        self.heal()
        before = {name: self.infos(name) for name in NAMESPACES}
        self.engine.close()
        self.engine = self._open()
        for name in NAMESPACES:
            by_id = {info.id: info for info in self.infos(name)}
            assert by_id == {info.id: info for info in before[name]}

    # ---------------------------------------------------------------------- checks

    def check(self) -> None:
        with self.engine.session.lock:
            assert_consistent(self.engine)
            found = {name: self.infos(name) for name in NAMESPACES}
        for name, infos in found.items():
            for info in infos:
                assert info.id in self.may_be.get(name, {}), "it was taken back"
                told = self.may_be[name][info.id]
                assert (info.pinned, info.published) == (told.pinned, told.published)
                assert info.expires == told.expires
        ids = {info.id for infos in found.values() for info in infos}
        assert ids >= self.must_be, "a donor is lost that a tier has"

    def check_exact(self) -> None:
        """What lies in the pool is right, wherever it has been."""
        for name in NAMESPACES:
            space = self.engine.library.find(name)
            for donor in [] if space is None else space.donors.values():
                if donor.is_whole:
                    assert_exact(self.engine, donor.ids, donor.slots)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody waits for long."""
    make = storage_setup.blob_format
    monkeypatch.setattr(
        storage_setup, "blob_format", lambda *given: replace(make(*given), layers_per_group=2)
    )
    for path, seconds in (
        ("storage._FIRST_PAUSE_S", 0.01),
        ("storage._LAST_PAUSE_S", 0.02),
        ("storage_jobs.FIRST_RETRY_S", 0.01),
        ("storage.REMOVAL_TIMEOUT_S", 0.05),
    ):
        monkeypatch.setattr(f"semshare.engine.{path}", seconds)
    with ExitStack() as patches:
        patches.enter_context(mock.patch("semshare.kv.sequence.MIN_VIEW_TOKENS", 16))
        yield


@pytest.mark.parametrize("n_tiers", [1, 2])
@pytest.mark.parametrize("formats", [("full", "full"), ("full", "int8"), ("int8", "int8")])
@pytest.mark.parametrize("seed", range(3))
def test_storage_costs_reuse_and_nothing_else(
    reference: SemShare, seed: int, formats: tuple[str, str], n_tiers: int
) -> None:
    tiers = [Moody() for _ in range(n_tiers)]
    tiers[-1].name = "lower"  # type: ignore[misc]
    storage = StorageConfig(
        host_bytes=1 << 20,
        disk_path="nowhere" if n_tiers == 2 else None,
        donor_format=formats[1],
        load_timeout_s=0.1,
    )
    life = Life(
        reference,
        tiers,
        np.random.default_rng([seed, n_tiers]),
        {
            "kv_budget_bytes": PAGES * PAGE * 1024,
            "page_size": PAGE,
            "history_tokens": 2,
            "donor_format": formats[0],
            "storage": storage,
        },
    )
    try:
        for _ in range(40):
            life.act()
        life.restart()
        life.check()
        for policy in POLICIES:
            life._ask("a", life.prompt(), policy, full_pool=False)
        settle(life.engine)
        if formats == ("full", "full"):
            life.check_exact()
    except BaseException as error:
        error.add_note(f"after {', '.join(life.done)}")
        raise
    finally:
        for tier in tiers:
            tier.held.set()
        life.engine.close()
