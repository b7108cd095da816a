"""Requests for answers, in OpenAI's form, validated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from semshare.types import GenerateOptions
from semshare_service.openai_fields import (
    CHAT_NEUTRAL,
    CHAT_UNREAD,
    COMPLETION_NEUTRAL,
    COMPLETION_UNREAD,
    readable_fields,
)
from semshare_service.schemas import (
    MAX_TOKEN_ID,
    Messages,
    ReuseFields,
    StrictModel,
    TokenIdsAsSent,
    token_ids,
)

_MAX_STOPS = 16
_MAX_CHOICES = 64
_MAX_COMPLETION_LOGPROBS = 5  # OpenAI's limits
_MAX_CHAT_LOGPROBS = 20
_MAX_BIAS = 100.0


def _one_prompt(value: object) -> str | list[int]:
    """OpenAI's `prompt`: text, ids, or a list that holds one of these."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > 1:
            raise ValueError("one prompt a request is offered: send a request for each")
        return value[0] if isinstance(value[0], str) else token_ids(value[0])
    return token_ids(value)


def _stop_strings(value: object) -> tuple[str, ...]:
    items = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) > _MAX_STOPS:
        raise ValueError(f"stop must be a string or a list of at most {_MAX_STOPS} strings")
    if not all(isinstance(item, str) and item for item in items):
        raise ValueError("every stop must be a string that is not empty")
    return tuple(items)


def _biases(value: object) -> dict[int, float]:
    """OpenAI's `logit_bias`: keys are token ids written as strings, since JSON has no others."""
    biases = {} if value is None else value
    if not isinstance(biases, dict):
        raise ValueError("logit_bias must be a map from token ids to numbers")
    if not all(key.isascii() and key.isdecimal() and int(key) <= MAX_TOKEN_ID for key in biases):
        raise ValueError(f"every key must be a token id, a whole number from 0 to {MAX_TOKEN_ID}")
    if not all(
        type(bias) in (int, float) and -_MAX_BIAS <= bias <= _MAX_BIAS for bias in biases.values()
    ):
        raise ValueError(f"every bias must be a number from {-_MAX_BIAS} to {_MAX_BIAS}")
    return {int(key): float(bias) for key, bias in biases.items()}


_One = Field(min_length=1, max_length=1)
_OnePromptAsSent = Annotated[list[str], _One] | Annotated[list[TokenIdsAsSent], _One]
_StopAsSent = Annotated[str, Field(min_length=1)]
PromptField = Annotated[
    str | list[int],
    BeforeValidator(_one_prompt, json_schema_input_type=str | TokenIdsAsSent | _OnePromptAsSent),
]
LogitBiasField = Annotated[
    dict[int, float],
    BeforeValidator(
        _biases,
        json_schema_input_type=dict[
            Annotated[str, Field(pattern="^[0-9]+$")],
            Annotated[float, Field(ge=-_MAX_BIAS, le=_MAX_BIAS)],
        ]
        | None,
    ),
]
StopField = Annotated[
    tuple[str, ...],
    BeforeValidator(
        _stop_strings,
        json_schema_input_type=_StopAsSent
        | Annotated[list[_StopAsSent], Field(max_length=_MAX_STOPS)]
        | None,
    ),
]


class StreamOptions(StrictModel):
    """OpenAI's `stream_options`.

    include_usage:       whether a last chunk has `usage`.
    include_obfuscation: pads chunks at OpenAI's; here it changes nothing.
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationFields(ReuseFields):
    """What completions and chat completions have in common.

    model:          if given, the name of the model that is served.
    n:              answers, 1 where left out. The first is the one that the same seed gives alone.
    max_tokens:     most tokens of each answer; the setting `default_max_tokens` where left out.
    temperature:    0, the default, takes the likeliest token.
    top_p:          draws from the likeliest tokens that together have this probability.
    top_k:          draws from so many of the likeliest tokens; 0: from all.
    min_p:          keeps tokens at least so many times as likely as the likeliest one.
    logit_bias:     added to the logits of tokens, by their ids written as strings.
    seed:           makes the draws repeatable.
    stop:           the answer ends before this string, or the first of these, at most 16.
    deadline_s:     seconds, from its turn in the queue, after which the answer ends as it is.
    stream:         sends the answer as server-sent events while it is made.
    stream_options: only where `stream` is true.
    """

    model: str | None = None
    n: int | None = Field(default=None, ge=1, le=_MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=MAX_TOKEN_ID)
    min_p: float | None = Field(default=None, ge=0, le=1)
    logit_bias: LogitBiasField = Field(default_factory=dict)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: StopField = ()
    deadline_s: float | None = Field(default=None, gt=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(
        cls, value: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("there is no stream that it could be about: set stream to true")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def options(self, default_max_tokens: int, *, measured: bool = False) -> GenerateOptions:
        """Keyword arguments of `Engine.stream`. Greedy unless a temperature is given.

        measured: as in `reuse`.
        """
        namespace, policy = self.reuse(measured=measured)
        return {
            "policy": policy,
            "namespace": namespace,
            "n": self.n or 1,
            "max_tokens": self.token_limit() or default_max_tokens,
            "temperature": 0.0 if self.temperature is None else float(self.temperature),
            "top_p": 1.0 if self.top_p is None else float(self.top_p),
            "top_k": self.top_k or 0,
            "min_p": 0.0 if self.min_p is None else float(self.min_p),
            "logit_bias": self.logit_bias,
            "logprobs": self.alternatives(),
            "seed": self.seed,
            "stop": self.stop,
            "deadline_s": None if self.deadline_s is None else float(self.deadline_s),
        }

    def token_limit(self) -> int | None:
        """Most answer tokens, if the request says."""
        return self.max_tokens

    @abstractmethod
    def alternatives(self) -> int | None:
        """How many alternatives are told with each token's log-probability; None: neither is."""


class CompletionRequest(GenerationFields):
    """`POST /v1/completions`.

    prompt:   a text, token ids, or a list with one of these.
    logprobs: alternatives told with each token's log-probability; null: none is told.
    """

    prompt: PromptField
    logprobs: int | None = Field(default=None, ge=0, le=_MAX_COMPLETION_LOGPROBS)

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """`body` without OpenAI's fields that ask for nothing."""
        return readable_fields(body, COMPLETION_NEUTRAL, COMPLETION_UNREAD)

    def alternatives(self) -> int | None:
        """Here `logprobs` is their number."""
        return self.logprobs


class ChatRequest(GenerationFields):
    """`POST /v1/chat/completions`.

    messages:              the chat, in the model's own template.
    max_completion_tokens: OpenAI's newer name of `max_tokens`, and the one that counts.
    logprobs:              tells each token's log-probability.
    top_logprobs:          alternatives told with it; only where `logprobs` is true.
    """

    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=_MAX_CHAT_LOGPROBS)

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """`body` without OpenAI's fields that ask for nothing."""
        return readable_fields(body, CHAT_NEUTRAL, CHAT_UNREAD)

    def token_limit(self) -> int | None:
        """`max_tokens` is OpenAI's older name; where both come, the newer one counts."""
        return self.max_completion_tokens or self.max_tokens

    def alternatives(self) -> int | None:
        """Here `logprobs` asks for log-probabilities, and `top_logprobs` is the number."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("alternatives come with log-probabilities: set logprobs to true")
        return value
