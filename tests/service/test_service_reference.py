"""`/reference` shows the whole description, and its policy lets it do nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape

from aiohttp.test_utils import TestClient

from semshare_service.description.document import openapi_document
from semshare_service.description.page import reference_page
from semshare_service.routes import all_routes

DOCUMENT = openapi_document(all_routes())


async def test_it_shows_every_operation_and_every_object(client: TestClient) -> None:
    async with client.get("/reference") as response:
        assert (response.status, response.content_type) == (200, "text/html")
        html = await response.text()
    operations = [
        one["operationId"] for item in DOCUMENT["paths"].values() for one in item.values()
    ]
    anchors = re.findall(r'id="([^"]+)"', html)
    assert sorted(anchors) == sorted([*operations, *DOCUMENT["components"]["schemas"], "schemas"])
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(anchors)


async def test_its_policy_allows_its_own_style_sheet_and_nothing_else(client: TestClient) -> None:
    async with client.get("/reference") as response:
        policy, html = response.headers["Content-Security-Policy"], await response.text()
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    directives = dict(one.split(" ", 1) for one in policy.split("; "))
    assert directives.pop("style-src") == f"'sha256-{digest}'"
    assert set(directives.values()) == {"'none'"}
    assert "default-src" in directives
    assert not re.search(r"<script|<link|<img| style=| src=|url\(|@import", html)


def test_markup_in_texts_stays_text() -> None:
    text = "<b>bold</b> & `<i>`"
    about = {**DOCUMENT["info"], "description": text}
    html = reference_page({**DOCUMENT, "info": about}).html
    assert "<p>&lt;b&gt;bold&lt;/b&gt; &amp; <code>&lt;i&gt;</code></p>" in html


def test_types_and_bounds_are_told_in_words() -> None:
    html = reference_page(DOCUMENT).html
    assert cells(html, "ChatRequest", "messages") == [
        "messages required",
        "list of Message",
        "the chat, in the model's own template. at least 1 of them",
    ]
    assert cells(html, "CompletionRequest", "stop")[1] == (
        "string (at least 1 long) or list of string "
        "(at most 16 of them, each at least 1 long) or null"
    )


def test_texts_link_to_the_objects_that_they_name() -> None:
    events = reference_page(DOCUMENT).html.partition("<code>text/event-stream</code>")[2]
    assert '<a href="#CompletionChunk"><code>CompletionChunk</code></a>' in events[:500]


def cells(html: str, name: str, field: str) -> list[str]:
    """Of an object's field in its table, without markup."""
    row = html.partition(f'id="{name}"')[2].partition(f"<code>{field}</code>")[2]
    row = f"<th>{field} {row.partition('</tr>')[0]}"
    found = [unescape(re.sub(r"<[^>]+>", " ", cell)) for cell in re.split("<td>", row)]
    return [" ".join(cell.split()).replace("( ", "(") for cell in found]
