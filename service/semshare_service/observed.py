"""What is told of an answered request: to metrics, the dashboard and shadow verification."""

from __future__ import annotations

from dataclasses import dataclass

from semshare.config import ReusePolicy
from semshare.types import Answer, Prompt
from semshare_service.tenants import Tenant


@dataclass(frozen=True, slots=True)
class Answered:
    """One answered request. Listeners that keep one keep its prompt: never log it.

    request_id: as the response's `X-Request-Id` has it.
    route:      `completions` or `chat`.
    tenant:     who asked.
    namespace:  of the tenant.
    prompt:     as the engine was given it.
    policy:     of the request; None: the defaults.
    answer:     with its provenance and timings.
    queue_s:    seconds it waited for its turn.
    ended:      seconds since the epoch.
    """

    request_id: str
    route: str
    tenant: Tenant
    namespace: str
    prompt: Prompt
    policy: ReusePolicy | None
    answer: Answer
    queue_s: float
    ended: float
