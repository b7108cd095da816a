"""Handles: whose they are, how many, and that their KV is released once and only once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from semshare.errors import NotFound
from semshare_service.errors import TooManyHandles
from semshare_service.handles import Handles, HeldKV
from semshare_service.kv_wire import KVHeader


@dataclass
class FakePrompt:
    released: int = 0

    def release(self) -> None:
        self.released += 1


HEADER = KVHeader("f", "m", "float32", 1, 1, 1, np.zeros(1, np.int32), np.zeros(1, np.uint8))


def held() -> tuple[FakePrompt, HeldKV]:
    prompt: Any = FakePrompt()
    return prompt, HeldKV(HEADER, prompt)


async def test_a_handle_is_its_tenants_alone() -> None:
    handles, (prompt, kv) = Handles(2), held()
    name = handles.reserve("a")
    assert re.fullmatch("kv-[0-9a-f]{32}", name)
    with pytest.raises(NotFound, match="prefill the prompt again"), handles.reading("a", name):
        pass  # it is not there yet
    handles.fill(name, kv, ttl_s=9.0)
    with handles.reading("a", name) as found:
        assert found is kv
    with pytest.raises(NotFound), handles.reading("b", name):
        pass
    with pytest.raises(NotFound):
        handles.drop("b", name)
    handles.drop("a", name)
    with pytest.raises(NotFound):
        handles.drop("a", name)
    await handles.close(60)
    assert prompt.released == 1


async def test_each_tenant_has_so_many() -> None:
    handles, (_, kv) = Handles(2), held()
    first = handles.reserve("a")
    handles.fill(first, kv, ttl_s=50.0)
    handles.reserve("a")  # one that is being prefilled counts, too
    with pytest.raises(TooManyHandles, match="2 handles are open, which is the limit") as caught:
        handles.reserve("a")
    assert caught.value.retry_after_s is not None
    assert 40 < caught.value.retry_after_s <= 50
    handles.reserve("b")
    handles.drop("a", first)
    handles.reserve("a")
    await handles.close(60)


async def test_what_is_read_is_released_after_its_last_reader() -> None:
    handles, (prompt, kv) = Handles(1), held()
    name = handles.reserve("")
    handles.fill(name, kv, ttl_s=9.0)
    with handles.reading("", name):
        with handles.reading("", name):
            handles.discard(name)
        again = handles.reserve("")  # its place is free already
        handles.discard(again)
        assert handles._releasing == []
        assert prompt.released == 0
    await handles.close(60)
    assert prompt.released == 1


async def test_kv_that_comes_after_its_handle_went_is_released() -> None:
    handles, (prompt, kv) = Handles(1), held()
    name = handles.reserve("")
    handles.discard(name)  # the client has gone
    handles.fill(name, kv, ttl_s=9.0)
    handles.discard(name)
    await handles.close(60)
    assert prompt.released == 1


async def test_nothing_stays_held_at_the_end() -> None:
    handles, prompts = Handles(3), [held() for _ in range(3)]
    for _, kv in prompts:
        handles.fill(handles.reserve(""), kv, ttl_s=9.0)
    await handles.close(60)
    assert [prompt.released for prompt, _ in prompts] == [1, 1, 1]
