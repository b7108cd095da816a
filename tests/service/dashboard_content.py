"""A service with something to see: donors, requests of all kinds, an hour of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from reading_engine import ReadingEngine

from semshare.types import StorageUse, TierUse
from semshare_service.app import create_app
from semshare_service.context import SERVICE
from semshare_service.observed import Answered
from semshare_service.routes.dashboard import WATCHED
from semshare_service.settings import ServiceSettings

REPORT = (
    "The committee met on Tuesday to review the harbour works. Dredging of the northern channel "
    "is complete, and the new pilings stand up to the loads that the engineers had asked for. "
    "Costs are four per cent below the estimate. Work on the southern quay starts in March, once "
    "the nesting season of the terns is over. The committee thanks the harbour master for the "
    "figures, and asks for a second survey of the sea bed before the winter storms."
)
MARKUP = '<img src=x onerror="document.title=`owned`"><script>document.title="owned"</script> & <b>'
PROMPTS = (
    f"Summarize this.\n\n{REPORT}",
    REPORT.replace("Tuesday", "Thursday").replace("new pilings", "fresh piles") + "\n\nIn a line?",
    f"{REPORT}\n\nWhat did it cost?",
    "Translate into French: the nesting season of the terns is over.",
    f"What is in here? {MARKUP} {REPORT[:180]}",
    "Which of the two bids for the lock gates keeps to the tender, and what does it leave out?",
)
STORAGE = StorageUse(
    (
        TierUse("host", 100_000, 1 << 20, {}),
        TierUse("disk", 5 << 30, 64 << 30, {}),
        TierUse("redis", None, 8 << 30, {}),
    ),
    waiting=2,
    counters={},
)
NAMESPACES = ("default",) * 5 + ("tenders",)


@asynccontextmanager
async def filled(
    engine: ReadingEngine, *middlewares: Any, **settings: Any
) -> AsyncIterator[TestClient]:
    """A client of a running service that has answered each of `PROMPTS` once, in their order."""
    app = create_app(engine, ServiceSettings(concurrency=2, shutdown_timeout_s=10, **settings))
    app.middlewares.extend(middlewares)
    async with TestClient(TestServer(app)) as client:
        await asyncio.wrap_future(app[SERVICE].worker.loaded)
        for text in (REPORT, "An older note about the light house and its keeper. " * 4):
            await client.put("/v1/donors", json={"text": text})
        await ask_all(client, "request")
        yield client


async def ask_all(client: TestClient, name: str) -> None:
    """Ask all of `PROMPTS`, as `name-0`, `name-1` …"""
    for number, prompt in enumerate(PROMPTS):
        reuse = {"namespace": NAMESPACES[number]}
        body = {"prompt": prompt, "max_tokens": 4, "semshare": reuse}
        headers = {"X-Request-Id": f"{name}-{number}"}
        async with client.post("/v1/completions", json=body, headers=headers) as response:
            assert response.status == 200


async def stats_of(client: TestClient) -> Any:
    """`GET /v1/stats`, once the engine has told who holds its pool."""
    while True:
        async with client.get("/v1/stats") as response:
            found = await response.json()
        if found["pool"] is not None:
            return found


async def live_through_an_hour(client: TestClient) -> None:
    """Let the dashboard believe that such requests came all through the last hour."""
    app = client.app
    assert app is not None
    events: list[Answered] = []
    app[SERVICE].listeners.append(events.append)
    await ask_all(client, "before")
    latest = events[-1].ended
    for ago in range(3540, 0, -4):
        if ago // 60 in (33, 34, 35):  # nobody asked
            continue
        chosen = int(6 * (0.5 + 0.5 * math.sin(ago / 700 + ago * ago / 3))) % len(events)
        event = events[chosen]
        slower = 1.3 + 0.3 * math.sin(ago * 1.7)
        timings = replace(event.answer.timings, ttft_s=event.answer.timings.ttft_s * slower + 0.01)
        past = replace(
            event,
            ended=latest - ago,
            answer=replace(event.answer, timings=timings),
            request_id=f"{event.request_id}-{ago}",
        )
        app[WATCHED].activity(past)
        if ago < 200:
            app[WATCHED].recent(past)
    await ask_all(client, "again")


def contract_donors(count: int) -> Any:
    """A middleware that answers for donors as the REST contract has it, from a list of its own."""
    kept = {
        f"donor-{number:024x}": {
            "object": "donor",
            "id": f"donor-{number:024x}",
            "namespace": "default",
            "tokens": 100 + 37 * number,
            "bytes": 46_080 * (100 + 37 * number),
            "pinned": number == 2,
            "created": 1_790_000_000 + 600 * number,
            "last_used": 1_790_100_000 + 600 * number,
            "expires": 1_799_000_000 if number == 3 else None,
            "published": False,
        }
        for number in range(count)
    }

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        if not request.path.startswith("/v1/donors") or request.method == "PUT":
            return await handler(request)
        name = request.path.removeprefix("/v1/donors").lstrip("/")
        if not name:
            limit, after = int(request.query["limit"]), request.query.get("after", "")
            found = [donor for key, donor in kept.items() if key > after]
            data, more = found[:limit], len(found) > limit
            return web.json_response({"object": "list", "data": data, "has_more": more})
        if name not in kept:
            error = {"message": f"no donor {name!r}", "type": "x", "param": None, "code": "x"}
            return web.json_response({"error": error}, status=404)
        if request.method == "DELETE":
            del kept[name]
            return web.json_response({"id": name, "object": "donor", "deleted": True})
        if request.method == "PATCH":
            kept[name] |= await request.json()
            return web.json_response(kept[name])
        return web.json_response({**kept[name], "text": MARKUP})

    return middleware
