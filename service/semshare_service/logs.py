"""Logs with request ids, as text or as JSON lines, that never hold a prompt.

Errors are logged by class and place: their messages may quote the text they failed on.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

from semshare_service.finished import ONGOING, Finished

LogFormat: TypeAlias = Literal["text", "json"]
_ExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)

logger = logging.getLogger("semshare_service.access")


class _WithoutMessages(logging.Formatter):
    """Tells an exception by its class and frames; neither its message nor source lines."""

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's name
        kind, _, trace = ei
        frames = traceback.extract_tb(trace)
        trail = " < ".join(
            f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})"
            for frame in reversed(frames)
        )
        return f"{'' if kind is None else kind.__name__} at {trail}"


class TextFormatter(_WithoutMessages):
    """One line a record: time, level, logger, request id, message and `key=value` fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line without exception."""
        name = _request_id()
        record.request = "" if name is None else f" [{name}]"
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        return super().formatMessage(record) + fields


class JsonFormatter(_WithoutMessages):
    """One JSON object a record: `time`, `level`, `logger`, `message`, `request_id` and fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        name = _request_id()
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **({} if name is None else {"request_id": name}),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Log to standard error from `level` (`debug`, `info`, `warning`, `error`) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # At info it tells of every variant of its library that it did not find.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)


def log_access(finished: Finished) -> None:
    """One line a request: its route's template, never its raw path, query or body."""
    if not logger.isEnabledFor(logging.INFO):
        return
    fields: dict[str, object] = {
        "method": finished.method,
        "route": finished.route,
        "status": finished.status,
        "tenant": finished.tenant,
        "seconds": round(finished.seconds, 6),
    }
    if finished.answered is not None:
        answer = finished.answered.answer
        fields |= {f"tokens_{source}": n for source, n in answer.provenance.counts.items()}
        fields["completion_tokens"] = answer.completion_tokens
    logger.info("request", extra={"fields": fields})


def _request_id() -> str | None:
    ongoing = ONGOING.get()
    return None if ongoing is None else ongoing.request_id


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", {})
    return fields if isinstance(fields, dict) else {}
