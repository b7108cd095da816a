"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_S = 120
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")


class PageLeft(Exception):
    """The page was left while something was asked of it."""


class Page:
    """A tab. What the page throws or logs as an error is kept in `errors`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._session: str | None = None
        self.errors: list[str] = []

    async def open(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        async with asyncio.timeout(PATIENCE_S):
            await self._socket.send_json(message)
            while (answer := await self._socket.receive_json()).get("id") != number:
                self._hear(answer)
        if "navigated" in answer.get("error", {}).get("message", ""):
            raise PageLeft
        assert "error" not in answer, answer
        return answer["result"]

    def _hear(self, event: dict[str, Any]) -> None:
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.errors.append(json.dumps(event["params"]["entry"]))

    async def go(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def get(self, expression: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Return once an expression is true, looking whenever the page is drawn.

        A page that is left meanwhile is looked at again where it leads to.
        """
        look = (
            "new Promise((done) => { const look = () => "
            f"(document.readyState === 'complete' && ({condition})) ? done() "
            ": requestAnimationFrame(look); look(); })"
        )
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await self.get(look)
                    return
                except PageLeft:
                    continue

    async def press(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, **_CODES[key], **text
            )

    async def point_at(self, selector: str) -> None:
        """Move the pointer until it is over an element: what is above it may still be filling."""
        element = f"document.querySelector({json.dumps(selector)})"
        async with asyncio.timeout(PATIENCE_S):
            while True:
                x, y = await self.get(
                    f"(() => {{ const found = {element}; "
                    "found.scrollIntoView({ block: 'center', behavior: 'instant' }); "
                    "const box = found.getClientRects()[0]; "
                    "return [box.left + box.width / 2, box.top + box.height / 2]; })()"
                )
                await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
                if await self.get(f"{element}.matches(':hover')"):
                    return

    async def look(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Set the size in CSS pixels, and the scheme that the user prefers."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def shoot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


_CODES = {
    key: {"windowsVirtualKeyCode": code}
    for key, code in {
        "Tab": 9,
        "Enter": 13,
        "End": 35,
        "Home": 36,
        "ArrowLeft": 37,
        "ArrowRight": 39,
    }.items()
}


@asynccontextmanager
async def browsing(profile: Path) -> AsyncIterator[Page]:
    """A new tab of a new browser, whose profile lies in the folder `profile`."""
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM),
        *_FLAGS,
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            line = b""
            while b"DevTools listening on " not in line:
                line = await process.stderr.readline()
                assert line, "the browser has ended"
        address = line.decode().rpartition(" ")[2].strip()
        drained = asyncio.create_task(process.stderr.read())  # or the pipe fills up
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
        ):
            page = Page(socket)
            await page.open()
            yield page
    finally:
        process.kill()
        await process.wait()
    await drained
