"""The dashboard in a headless Chromium: what it shows, by mouse and by keyboard."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from browser import CHROMIUM, Page, browsing
from dashboard_content import MARKUP, PROMPTS, STORAGE, contract_donors, filled
from reading_engine import ReadingEngine
from service_helpers import url_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")
KEY = "sk-a-key"


@asynccontextmanager
async def opened(
    tmp_path: Path, *middlewares: Any, engine: ReadingEngine | None = None
) -> AsyncIterator[tuple[Page, TestClient]]:
    """A tab with the dashboard of a service that has answered requests."""
    async with (
        filled(engine or ReadingEngine(), *middlewares, contract_donors(45)) as client,
        browsing(tmp_path / "profile") as page,
    ):
        await page.go(url_of(client))
        yield page, client
        assert page.errors == []


def text_of(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)}).textContent"


async def inspect_request(page: Page, name: str) -> None:
    await page.until(f"document.querySelector('[aria-label=\"Inspect request {name}\"]')")
    await page.get(f"document.querySelector('[aria-label=\"Inspect request {name}\"]').click()")
    await page.until(f"document.querySelector('#inspected-what').textContent.includes('{name}')")


async def test_the_inspector_shows_the_donor_by_pointer_and_by_keyboard(tmp_path: Path) -> None:
    async with opened(tmp_path) as (page, _):
        await inspect_request(page, "request-1")
        assert await page.get(text_of("#pieces")) == PROMPTS[1]
        # The first piece has the focus, so that the arrow keys work at once.
        assert await page.get("document.activeElement.textContent") == "The committee met on"
        await page.press("ArrowRight")
        assert await page.get("document.activeElement.className") == "run fuzzy"
        assert await page.get(text_of("#donor-side")) == " Tuesday"
        await page.press("End")
        assert await page.get("document.activeElement.textContent") == "\n\nIn a line?"
        assert await page.get("document.querySelector('#donor-side')") is None
        await page.point_at(".run.fuzzy + .run.span + .run.fuzzy")
        assert await page.get(text_of("#donor-side")) == " new pilings"
        selected = await page.get(
            "[...document.querySelectorAll('#pieces [aria-selected=true]')]"
            ".map((run) => run.textContent)"
        )
        assert selected == [" fresh piles"]


async def test_markup_in_a_prompt_is_only_text(tmp_path: Path) -> None:
    async with opened(tmp_path) as (page, _):
        await inspect_request(page, "request-4")
        assert MARKUP in await page.get(text_of("#pieces"))
        await page.until("document.querySelector('[aria-label^=\"Text of\"]')")
        await page.get("document.querySelector('[aria-label^=\"Text of\"]').click()")
        await page.until("document.querySelector('dialog').open")
        assert await page.get(text_of("#donor-text-body")) == MARKUP
        inside = "#inspected img, #inspected script, dialog img, dialog script"
        assert await page.get(f"document.querySelectorAll('{inside}').length") == 0
        assert await page.get("document.title") == "semshare"


async def test_a_pasted_prompt_is_inspected(tmp_path: Path) -> None:
    async with opened(tmp_path) as (page, client):
        await page.until("document.querySelector('#request-rows button')")
        await page.get(
            f"document.querySelector('#prompt').value = {json.dumps(PROMPTS[0])}, "
            "document.querySelector('#inspect-form').requestSubmit()"
        )
        await page.until("document.querySelector('#inspected-what').textContent")
        assert (await page.get(text_of("#inspected-what"))).startswith("Dry run: ")
        assert await page.get(text_of("#pieces")) == PROMPTS[0]
        assert "no donor has it" in await page.get(text_of("#piece"))
        async with client.get("/v1/requests") as response:
            assert len((await response.json())["data"]) == len(PROMPTS)


async def test_the_hour_can_be_read_by_keyboard(tmp_path: Path) -> None:
    async with opened(tmp_path) as (page, client):
        await page.until("document.querySelector('#hour svg')")
        async with client.get("/v1/stats") as response:
            series = (await response.json())["series"]
        await page.get("document.querySelector('#hour').focus()")
        await page.press("Home")
        assert (await page.get(text_of("#hour-reading"))).endswith(": no requests")
        assert await page.get("document.querySelector('#hour').ariaValueNow") == "0"
        told = []
        for key in ("End", "ArrowLeft"):  # the requests may have come in the minute before
            await page.press(key)
            told.append(await page.get(text_of("#hour-reading")))
        busy = [minute for minute in series if minute["requests"]]
        assert any(f"{busy[-1]['requests']} request" in line and "prefix" in line for line in told)


async def test_memory_is_shown_by_tier(tmp_path: Path) -> None:
    rows = "[...document.querySelectorAll('.tiers li')].map((row) => row.innerText)"
    async with opened(tmp_path, engine=ReadingEngine(storage=STORAGE)) as (page, _):
        await page.until("document.querySelector('.tiers li')")
        pool, host, disk, redis = await page.get(rows)
        assert pool.startswith("pool")
        assert host.split() == ["host", "memory", "97.7", "KiB", "of", "1.0", "MiB"]
        assert disk.split() == ["disk", "5.0", "GiB", "of", "64.0", "GiB"]
        assert redis.split() == ["Redis", "–", "of", "8.0", "GiB"]
        assert "2 writes not done yet." in await page.get(text_of("#memory"))


async def test_donors_are_paged_searched_pinned_and_deleted(tmp_path: Path) -> None:
    rows = "document.querySelectorAll('#donor-rows tr').length"
    where = text_of("#donors-where")
    button = "document.querySelector('[aria-label=\"{} donor-{:024x}\"]')".format
    async with opened(tmp_path) as (page, _):
        await page.until(f"{rows} === 20")
        assert await page.get(where) == "1 to 20"
        await page.get("document.querySelector('#donors-on').click()")
        await page.until(f"{where} === '21 to 40'")
        await page.get("document.querySelector('#donors-on').click()")
        await page.until(f"{where} === '41 to 45 of 45'")
        assert await page.get("document.querySelector('#donors-on').disabled")
        await page.get("document.querySelector('#donors-back').click()")
        await page.until(f"{where} === '21 to 40 of 45'")

        search = "document.querySelector('#donor-search')"
        await page.get(f"{search}.value = '002a', {search}.dispatchEvent(new Event('input'))")
        await page.until(f"{where} === '1 to 1 of 1'")
        await page.get(f"{button('Pin', 42)}.click()")
        await page.until(button("Unpin", 42))
        assert await page.get(f"document.activeElement === {button('Unpin', 42)}")
        await page.get(f"{button('Unpin', 42)}.click()")
        await page.until(button("Pin", 42))

        delete = button("Delete", 42)
        await page.get(f"{delete}.focus(), {delete}.click()")
        assert await page.get(f"{delete}.textContent") == "Really?"
        await page.get(f"{delete}.blur()")
        assert await page.get(f"{delete}.textContent") == "Delete"
        await page.get(f"{delete}.focus(), {delete}.click(), {delete}.click()")
        await page.until(f"{where} === 'no donor\\'s id has that in it'")


def wants_a_key() -> Callable[[web.Request, Any], Awaitable[web.StreamResponse]]:
    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization")
        inside = request.headers.get("User-Agent", "").startswith("Python")
        if not request.path.startswith("/v1/") or given == f"Bearer {KEY}" or inside:
            return await handler(request)
        error = {"message": "an API key, please", "type": "authentication_error"}
        return web.json_response({"error": error}, status=401)

    return middleware


async def test_a_key_is_asked_for_and_forgotten(tmp_path: Path) -> None:
    form = "document.querySelector('#key-form')"
    async with opened(tmp_path, wants_a_key()) as (page, _):
        await page.until(f"!{form}.hidden")
        assert await page.get("document.activeElement.id") == "key"
        assert await page.get(text_of("#problem")) == "an API key, please"
        for key in ("sk-wrong", KEY):
            await page.get(f"document.querySelector('#key').value = '{key}'")
            await page.get(f"{form}.requestSubmit()")
            await page.until(f"{form}.hidden === {json.dumps(key == KEY)}")
        await page.until("document.querySelectorAll('#request-rows tr').length")
        assert await page.get("sessionStorage.getItem('semshare.key')") == KEY
        await page.get("document.querySelector('#forget-key').click()")
        await page.until(f"{form} && !{form}.hidden")
        assert await page.get("sessionStorage.length") == 0
        assert await page.get("document.querySelectorAll('#request-rows tr').length") == 0
        page.errors.clear()  # the browser logs every 401


@pytest.mark.parametrize("dark", [False, True])
async def test_everything_can_be_read_on_a_phone(tmp_path: Path, dark: bool) -> None:
    async with opened(tmp_path) as (page, _):
        await page.look(360, dark=dark)
        await inspect_request(page, "request-1")
        await page.until("document.querySelector('#donor-rows tr')")
        assert await page.get("document.documentElement.scrollWidth") == 360
        assert await page.get("document.body.scrollWidth") <= 360
        for text, ground in (("body", "body"), (".tile small", ".tile"), (".note", ".card")):
            ratio = await page.get(CONTRAST % (json.dumps(text), json.dumps(ground)))
            assert ratio >= 4.5, (text, ratio)


# WCAG 2's contrast of a text's colour and a background's.
CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [
    light(getComputedStyle(document.querySelector(%s)).color),
    light(getComputedStyle(document.querySelector(%s)).backgroundColor),
  ].sort((a, b) => b - a);
  return (found[0] + 0.05) / (found[1] + 0.05);
})()"""
