"""Pictures of the dashboard over made-up requests: `python dashboard_shots.py FOLDER`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from browser import browsing
from dashboard_content import STORAGE, contract_donors, filled, live_through_an_hour
from reading_engine import ReadingEngine
from service_helpers import url_of

INSPECTED = "#inspector .run.fuzzy"


async def shoot(folder: Path) -> None:
    engine = ReadingEngine(running_bytes=150_000, storage=STORAGE)
    with tempfile.TemporaryDirectory() as profile:
        async with filled(engine, contract_donors(45)) as client, browsing(Path(profile)) as page:
            await live_through_an_hour(client)
            for width in (1280, 360):
                for dark in (False, True):
                    await page.look(width, dark=dark)
                    await page.go(url_of(client))
                    await page.until("document.querySelector('#request-rows button')")
                    await page.get("document.querySelector('[aria-label$=\"again-1\"]').click()")
                    await page.until(f"document.querySelector('{INSPECTED}')")
                    await page.get(f"document.querySelector('{INSPECTED}').focus()")
                    await page.get("scrollTo({ top: 0, behavior: 'instant' })")
                    name = f"dashboard-{width}-{'dark' if dark else 'light'}.png"
                    await page.shoot(folder / name)
            print(page.errors)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(shoot(Path(sys.argv[1])))
