"""OpenAI's request fields that this service does not offer, and those it can leave unread.

A field that would change the answer is refused unless its value asks for nothing. One that would
not is accepted, so that programs written for OpenAI's service run unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semshare_service.errors import InvalidParameter

# Field → values that ask for nothing; null asks for nothing everywhere.
_COMMON: Mapping[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
}
COMPLETION_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **_COMMON,
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
CHAT_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **_COMMON,
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
COMPLETION_UNREAD = frozenset({"user"})
CHAT_UNREAD = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)


def readable_fields(
    body: Mapping[str, Any], neutral: Mapping[str, tuple[object, ...]], unread: frozenset[str]
) -> dict[str, Any]:
    """`body` without the fields that ask for nothing; `InvalidParameter` for what is refused."""
    fields = {}
    for name, value in body.items():
        if name in unread:
            continue
        if name not in neutral:
            fields[name] = value
        elif value is not None and value not in neutral[name]:
            raise InvalidParameter(
                f"{name}: this service does not offer it: leave it out", param=name
            )
    return fields
