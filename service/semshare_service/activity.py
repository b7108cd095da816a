"""What each tenant's requests reused and how long they took, over the last hour."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from semshare.types import TokenSource
from semshare_service.observed import Answered
from semshare_service.replies import Body
from semshare_service.tenants import Tenant

_BUCKET_S = 5  # a window of a minute is 55 to 60 s long
_MINUTE = 60 // _BUCKET_S  # buckets
_HOUR = 60 * _MINUTE
_SERIES_MINUTES = 60
_TTFT_SAMPLES = 1000
_TTFT_WINDOW_S = 3600.0


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    tokens: Counter[str] = field(default_factory=Counter)  # by source

    def add(self, requests: int, tokens: dict[str, int] | Counter[str]) -> None:
        self.requests += requests
        for source, count in tokens.items():
            self.tokens[source] += count

    def body(self) -> Body:
        return {
            "requests": self.requests,
            "tokens": {
                source.name.lower(): self.tokens[source.name.lower()] for source in TokenSource
            },
        }


@dataclass(frozen=True, slots=True)
class _FirstToken:
    """Of one request. `after_s` is the engine's time, `ended` seconds since the epoch."""

    ended: float
    after_s: float
    prompt_tokens: int


class _TenantActivity:
    def __init__(self) -> None:
        self._all = _Counts()
        self._buckets: dict[int, _Counts] = {}  # by their number since the epoch
        self._fallbacks: Counter[str] = Counter()
        self._with_reuse: deque[_FirstToken] = deque(maxlen=_TTFT_SAMPLES)
        self._without: deque[_FirstToken] = deque(maxlen=_TTFT_SAMPLES)

    def add(self, event: Answered) -> None:
        answer = event.answer
        provenance, number = answer.provenance, int(event.ended // _BUCKET_S)
        if number not in self._buckets:
            kept_after = number - _HOUR
            self._buckets = {at: kept for at, kept in self._buckets.items() if at > kept_after}
            self._buckets[number] = _Counts()
        tokens = provenance.counts
        for counts in (self._all, self._buckets[number]):
            counts.add(1, tokens)
        if provenance.fallback is not None:
            self._fallbacks[provenance.fallback] += 1
        samples = self._with_reuse if provenance.reused else self._without
        samples.append(_FirstToken(event.ended, answer.timings.ttft_s, answer.prompt_tokens))

    def body(self, now: float) -> Body:
        last = int(now // _BUCKET_S)
        minute = int(now // 60)
        return {
            "windows": {
                "1m": self._between(last - _MINUTE, last).body(),
                "10m": self._between(last - 10 * _MINUTE, last).body(),
                "all": self._all.body(),
            },
            "series": [
                {"start": at * 60, **self._between(at * _MINUTE - 1, (at + 1) * _MINUTE - 1).body()}
                for at in range(minute - _SERIES_MINUTES + 1, minute + 1)
            ],
            "ttft": {
                "reused": _first_tokens(self._with_reuse, now),
                "computed": _first_tokens(self._without, now),
            },
            "fallbacks": dict(self._fallbacks),
        }

    def _between(self, after: int, last: int) -> _Counts:
        """The sum of the buckets with numbers above `after`, up to `last`."""
        total = _Counts()
        for number in range(after + 1, last + 1):
            if number in self._buckets:
                total.add(self._buckets[number].requests, self._buckets[number].tokens)
        return total


class Activity:
    """A listener that counts what was reused and how long first tokens took, by tenant."""

    def __init__(self) -> None:
        self._of_tenant: dict[str, _TenantActivity] = {}

    def __call__(self, event: Answered) -> None:
        """Count `event`, at the time it ended."""
        self._of_tenant.setdefault(event.tenant.name, _TenantActivity()).add(event)

    def body(self, tenant: Tenant, now: float) -> Body:
        """A tenant's part of `GET /v1/stats`.

        Args:
            tenant: who asks.
            now: seconds since the epoch; windows end here.

        Returns:
            `windows`: requests and prompt tokens by source over a minute, ten, and since the start.
            `series`: the same for each of the last 60 minutes of the clock, the oldest first.
            `ttft`: seconds to the first token, of the last hour's requests, at most 1,000 of each
            kind: p50, p95 and the median length of their prompts.
            `fallbacks`: requests computed in full after all, by reason, since the start.

        """
        return self._of_tenant.get(tenant.name, _TenantActivity()).body(now)


def _first_tokens(samples: Iterable[_FirstToken], now: float) -> Body:
    found = [sample for sample in samples if sample.ended > now - _TTFT_WINDOW_S]
    if not found:
        return {"requests": 0, "p50_s": None, "p95_s": None, "prompt_tokens_p50": None}
    p50, p95 = np.quantile([sample.after_s for sample in found], [0.5, 0.95]).tolist()
    return {
        "requests": len(found),
        "p50_s": p50,
        "p95_s": p95,
        "prompt_tokens_p50": float(np.median([sample.prompt_tokens for sample in found])),
    }
