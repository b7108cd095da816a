"""The last answered requests of each tenant, kept in memory for the inspector."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from semshare.errors import NotFound
from semshare.types import Prompt, Provenance
from semshare_service.observed import Answered
from semshare_service.replies import Body
from semshare_service.tenants import Tenant


@dataclass(frozen=True, slots=True)
class RecentRequest:
    """What is kept of an answered request: its prompt and where it came from, not the answer.

    space: the engine's namespace; the others are as `Answered` and `Answer` have them.
    """

    id: str
    route: str
    namespace: str
    space: str
    prompt: Prompt
    prompt_tokens: int
    completion_tokens: int
    provenance: Provenance
    ttft_s: float
    queue_s: float
    ended: float

    @classmethod
    def of(cls, event: Answered) -> RecentRequest:
        """The part of `event` that is kept."""
        answer = event.answer
        return cls(
            id=event.request_id,
            route=event.route,
            namespace=event.namespace,
            space=event.tenant.space(event.namespace),
            prompt=event.prompt,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            provenance=answer.provenance,
            ttft_s=answer.timings.ttft_s,
            queue_s=event.queue_s,
            ended=event.ended,
        )

    def body(self) -> Body:
        """As `GET /v1/requests` lists it: without the prompt."""
        provenance = self.provenance
        return {
            "id": self.id,
            "object": "request",
            "route": self.route,
            "namespace": self.namespace,
            "ended": self.ended,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "tokens": provenance.counts,
            "compute_fraction": float(provenance.compute_fraction),
            "mode": provenance.mode,
            "exact": bool(provenance.exact),
            "fallback": provenance.fallback,
            "ttft_s": self.ttft_s,
            "queue_s": self.queue_s,
        }


class RecentRequests:
    """A listener that keeps the last answered requests, each tenant's apart.

    A request takes about 14 bytes a prompt token; prompts are never longer than the model's
    context.

    Args:
        limit: requests kept for each tenant; 0 keeps none.

    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of_tenant: dict[str, deque[RecentRequest]] = {}

    def __call__(self, event: Answered) -> None:
        """Keep `event`; the tenant's oldest goes if there are too many."""
        if self._limit:
            mine = self._of_tenant.setdefault(event.tenant.name, deque(maxlen=self._limit))
            mine.appendleft(RecentRequest.of(event))

    def newest(self, tenant: Tenant, limit: int) -> list[RecentRequest]:
        """The last `limit` requests of a tenant, newest first."""
        return list(islice(self._of_tenant.get(tenant.name, ()), limit))

    def find(self, tenant: Tenant, request_id: str) -> RecentRequest:
        """A tenant's request; the newest where its client used a name twice.

        Raises:
            NotFound: none of that name is kept.

        """
        for request in self._of_tenant.get(tenant.name, ()):
            if request.id == request_id:
                return request
        raise NotFound(
            f"no request {request_id!r} among the last {self._limit} (recent_requests): "
            "GET /v1/requests lists those that are kept"
        )
