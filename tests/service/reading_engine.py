"""A fake engine that reads: words are tokens, and what donors share with a prompt is reused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from fake_engine import BYTES_PER_TOKEN, WORDS, FakeEngine

from semshare.errors import NotFound
from semshare.types import (
    Answer,
    Choice,
    DonorInfo,
    FreshReason,
    NamespaceUse,
    PoolUse,
    Prompt,
    Provenance,
    ReusePlan,
    TextDelta,
    Timings,
    TokenSource,
)

SECONDS_PER_FRESH_TOKEN = 0.002
BUDGET = 1_000_000


@dataclass
class ReadingEngine(FakeEngine):
    """The donor with the most words in common serves a prompt; changed words count as similar.

    Words that follow "changed" ones one for one are fuzzy, the first words of both are a prefix.
    """

    words: list[str] = field(default_factory=list)
    ids_of: dict[str, np.ndarray] = field(default_factory=dict)
    running_bytes: int = 0

    def encode(self, prompt: Prompt) -> np.ndarray:
        if not isinstance(prompt, str) and isinstance(prompt[0], int):
            return np.asarray(prompt, np.int32)
        if not isinstance(prompt, str):
            prompt = "".join(f"<{m['role']}>{m['content']}\n" for m in prompt)
        found = re.findall(r"\s*\S+|\s+$", prompt)
        self.words += dict.fromkeys(word for word in found if word not in self.words)
        return np.array([self.words.index(word) for word in found], np.int32)

    def token_bytes(self, token_id: int) -> bytes:
        return self.words[token_id].encode()

    def remember(
        self,
        prompt: Prompt,
        *,
        namespace: str = "default",
        pinned: bool = False,
        ttl_s: float | None = None,
        given_up: Callable[[], bool] | None = None,
    ) -> DonorInfo:
        self._begin("remember", prompt)
        ids = self.encode(prompt)
        name = f"donor-{len(self.ids_of):024x}"
        info = DonorInfo(
            name, namespace, len(ids), len(ids) * BYTES_PER_TOKEN, pinned, expires=ttl_s
        )
        self.ids_of[name], self.kept[namespace, name] = ids, info
        self.texts[name] = "".join(self.words[token] for token in ids)
        return info

    def donor_ids(self, donor_id: str, *, namespace: str = "default") -> np.ndarray:
        if (namespace, donor_id) not in self.kept:
            raise NotFound(f"no donor {donor_id!r} in namespace {namespace!r}")
        return self.ids_of[donor_id]

    def pool_use(self) -> PoolUse:
        assert self.hold.wait(timeout=60)
        namespaces = {
            name: NamespaceUse(len(found), sum(donor.bytes for donor in found), 4000)
            for name in {namespace for namespace, _ in self.kept}
            if (found := [donor for (of, _), donor in self.kept.items() if of == name])
        }
        kept = sum(use.donor_bytes + use.prefix_bytes for use in namespaces.values())
        free = BUDGET - kept - self.running_bytes
        return PoolUse(namespaces, self.running_bytes, BUDGET - free, free, 3, self.storage)

    def plan(self, prompt: Prompt, *, policy: Any = None, namespace: str = "default") -> ReusePlan:
        self._begin("plan", prompt)
        return self._plan(self.encode(prompt), namespace)

    def _plan(self, ids: np.ndarray, namespace: str) -> ReusePlan:
        source = np.zeros(len(ids), np.uint8)
        position = np.full(len(ids), -1, np.int32)
        matchers = {
            name: SequenceMatcher(None, self.ids_of[name].tolist(), ids.tolist(), autojunk=False)
            for of, name in self.kept
            if of == namespace
        }
        best = max(matchers, key=lambda name: matchers[name].ratio(), default=None)
        for what, a, a_end, b, b_end in matchers[best].get_opcodes() if best else ():
            if what == "equal":
                source[b:b_end] = TokenSource.PREFIX if a == b == 0 else TokenSource.SPAN
                position[b:b_end] = range(a, a_end)
            elif what == "replace" and a_end - a == b_end - b:
                source[b:b_end] = TokenSource.FUZZY
                position[b:b_end] = range(a, a_end)
        fresh = source == TokenSource.FRESH
        return ReusePlan(
            ids=ids,
            source=source,
            donor=np.where(fresh, -1, 0).astype(np.int32),
            position=position,
            slots=position.astype(np.int64),
            donors=() if best is None else (best,),
            reasons=np.where(fresh, FreshReason.UNMATCHED, FreshReason.REUSED).astype(np.uint8),
        )

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[TextDelta]:
        self._begin("stream", prompt)
        plan = self._plan(self.encode(prompt), options["namespace"])
        provenance = Provenance(
            source=plan.source,
            donors=plan.donors,
            donor=plan.donor,
            donor_position=plan.position,
            compute_fraction=plan.compute_fraction,
            exact=plan.is_exact,
            mode="semantic",
        )
        choice = Choice("".join(WORDS), list(range(len(WORDS))), "stop", ())
        ttft_s = SECONDS_PER_FRESH_TOKEN * len(plan.fresh_rows)
        answer = Answer(
            text=choice.text,
            token_ids=choice.token_ids,
            prompt_tokens=len(plan.ids),
            finish_reason="stop",
            provenance=provenance,
            timings=Timings(ttft_s=ttft_s),
            choices=(choice,),
        )
        yield TextDelta(choice.text, choice.token_ids, answer)
