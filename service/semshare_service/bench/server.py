"""The service of a load test, in a process of its own, which looks for leaks at its end.

    python -m semshare_service.bench.server SETTINGS [TOKEN_S]

SETTINGS: `ServiceSettings` as JSON. TOKEN_S: seconds a token of the stub; without it the model that
the settings name is served. Two lines of JSON on standard output: `{"url"}` once it listens, and
`{"slots_leaked"}` after SIGTERM and the last answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import cast

from semshare_service.bench.stub import StubEngine
from semshare_service.engine import Engine
from semshare_service.serve import engine_loader, serve
from semshare_service.settings import ServiceSettings


def main(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    settings = ServiceSettings.model_validate_json(arguments[0])
    engines: list[Engine] = []
    if len(arguments) > 1:
        # Only what answers prompts is asked of it.
        engines.append(cast(Engine, StubEngine(float(arguments[1]))))

    def load() -> Engine:
        if not engines:
            engines.append(engine_loader(settings)())
        return engines[0]

    asyncio.run(serve(settings, load=load, on_listening=lambda url: _tell({"url": url})))
    _tell({"slots_leaked": slots_held(engines[0])})


def slots_held(engine: object) -> int:
    """What an engine without requests and without donors still holds: KV slots, or answers."""
    if isinstance(engine, StubEngine):
        return engine.open_answers
    from semshare import SemShare  # noqa: PLC0415 - loads torch, which the stub can do without

    assert isinstance(engine, SemShare)  # noqa: S101 - there are no others
    engine.forget_all()
    return engine.pool.used_bytes // engine.pool.bytes_per_slot


def _tell(record: dict[str, object]) -> None:
    print(json.dumps(record), flush=True)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    main(sys.argv[1:])
