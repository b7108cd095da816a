"""The inspector and the figures over a real engine, tiny and random."""

from __future__ import annotations

from dashboard_content import stats_of
from service_helpers import running
from tiny import tiny_engine

TEXT = "Der Käse aus der Höhle kostet 12 €, sagt der Wirt, und er schmeckt allen gut. " * 3
SHIFTED = f"Übersetze das bitte: {TEXT} Und was kostet er?"
SPAN = {"mode": "span", "recompute": 0.0}


async def test_a_shifted_text_stands_beside_its_donor() -> None:
    engine = tiny_engine()
    async with running(engine) as client:
        async with client.put("/v1/donors", json={"text": TEXT}) as response:
            donor = (await response.json())["id"]
        body = {"prompt": SHIFTED, "max_tokens": 2, "semshare": SPAN}
        headers = {"X-Request-Id": "shifted"}
        async with client.post("/v1/completions", json=body, headers=headers) as response:
            tokens = (await response.json())["semshare"]["tokens"]
        async with client.get("/v1/requests/shifted") as response:
            found = await response.json()
        async with client.post("/v1/inspect", json={"text": SHIFTED, "semshare": SPAN}) as response:
            planned = await response.json()
        stats = await stats_of(client)
    pieces = found["pieces"]
    assert "".join(piece["text"] for piece in pieces) == SHIFTED
    spans = [piece for piece in pieces if piece["source"] == "span"]
    assert sum(piece["end"] - piece["start"] for piece in spans) == tokens["span"] > len(TEXT) // 2
    assert {piece["donor"] for piece in spans} == {donor}
    assert [piece["donor_text"] for piece in spans] == [piece["text"] for piece in spans]
    assert "�" not in str(pieces)
    assert [piece for piece in planned["pieces"] if piece["source"] == "span"] == spans
    assert "".join(piece["text"] for piece in planned["pieces"]) == SHIFTED
    assert {piece["reason"] for piece in planned["pieces"]} > {None, "unmatched"}
    assert stats["windows"]["all"] == {"requests": 1, "tokens": tokens}
    assert stats["donors"] == 1
    held = (stats["pool"][tier] for tier in ("donors", "prefixes", "running", "free"))
    assert sum(held) == engine.pool.n_slots * engine.pool.bytes_per_slot
