"""Requests, validated. Whatever passes here can be handed to the engine as it is.

Messages of errors name the field and what is allowed, never the value: it may be a prompt.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from semshare.config import DEFAULT_NAMESPACE, ReusePolicy
from semshare.types import ChatMessage, GenerateOptions, Prompt
from semshare_service.errors import InvalidParameter
from semshare_service.openai_fields import (
    CHAT_NEUTRAL,
    CHAT_UNREAD,
    COMPLETION_NEUTRAL,
    COMPLETION_UNREAD,
    readable_fields,
)

_MAX_TOKEN_ID = 2**31 - 1  # ids are int32 in the engine
_MAX_STOPS = 16
_MAX_CHOICES = 64
_MAX_COMPLETION_LOGPROBS = 5  # OpenAI's limits
_MAX_CHAT_LOGPROBS = 20
_MAX_BIAS = 100.0

Namespace = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]


class StrictModel(BaseModel):
    """A request of ours: no unknown fields, no conversions between types."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, body: object) -> Self:
        """The validated request; `InvalidParameter` names the first field that is wrong."""
        if not isinstance(body, Mapping):
            raise InvalidParameter("the body must be a map of fields")
        try:
            return cls.model_validate(dict(cls.read(body)))
        except ValidationError as error:
            detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
            param = ".".join(str(part) for part in detail["loc"]) or None
            message = detail["msg"].removeprefix("Value error, ")
            if detail["type"] == "extra_forbidden":
                message = f"unknown field; known are {', '.join(cls.model_fields)}"
            text = f"{param}: {message}" if param else message
            raise InvalidParameter(text, param) from None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of `body` that are validated; all of them unless overridden."""
        return body


def _token_ids(value: object) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError("token ids are a list of at least one whole number")
    if not all(type(item) is int and 0 <= item <= _MAX_TOKEN_ID for item in value):
        raise ValueError(f"every token id must be a whole number from 0 to {_MAX_TOKEN_ID}")
    return value


def _one_prompt(value: object) -> str | list[int]:
    """OpenAI's `prompt`: text, ids, or a list that holds one of these."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > 1:
            raise ValueError("one prompt a request is offered: send a request for each")
        return value[0] if isinstance(value[0], str) else _token_ids(value[0])
    return _token_ids(value)


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
    if not all(key.isascii() and key.isdecimal() and int(key) <= _MAX_TOKEN_ID for key in biases):
        raise ValueError(f"every key must be a token id, a whole number from 0 to {_MAX_TOKEN_ID}")
    if not all(
        type(bias) in (int, float) and -_MAX_BIAS <= bias <= _MAX_BIAS for bias in biases.values()
    ):
        raise ValueError(f"every bias must be a number from {-_MAX_BIAS} to {_MAX_BIAS}")
    return {int(key): float(bias) for key, bias in biases.items()}


def _plain_text(value: object) -> object:
    """A message's content as one string; OpenAI also sends it as a list of text parts."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        is_text = isinstance(part, dict) and part.get("type") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            raise ValueError("only parts of type text are offered")
        texts.append(part["text"])
    return "".join(texts)


TokenIds = Annotated[list[int], BeforeValidator(_token_ids)]
PromptField = Annotated[str | list[int], BeforeValidator(_one_prompt)]
LogitBiasField = Annotated[dict[int, float], BeforeValidator(_biases)]
StopField = Annotated[tuple[str, ...], BeforeValidator(_stop_strings)]
# What an answer's message carries besides role and text; empty, it says nothing.
_EMPTY_MESSAGE_FIELDS = (
    "annotations",
    "audio",
    "function_call",
    "name",
    "refusal",
    "tool_calls",
)


class Message(StrictModel):
    """One chat message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_plain_text)]

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, value: object) -> object:
        # So that an answer's own message can be sent back as part of the next request.
        if not isinstance(value, dict):
            return value
        return {
            key: item for key, item in value.items() if item or key not in _EMPTY_MESSAGE_FIELDS
        }

    def as_chat_message(self) -> ChatMessage:
        """In the form the engine takes; `developer` is OpenAI's newer word for `system`."""
        role = "system" if self.role == "developer" else self.role
        return ChatMessage(role=role, content=self.content)


Messages = Annotated[list[Message], Field(min_length=1)]


class ReuseFields(StrictModel):
    """The `semshare` field: a namespace, and the fields of a `ReusePolicy`."""

    semshare: dict[str, Any] | None = None

    def reuse(self, *, measured: bool = False) -> tuple[str, ReusePolicy | None]:
        """Namespace and policy; no policy where none of its fields is given.

        measured: divergence is (`Shadow.is_on`), so that a policy may set a bound on it.
        """
        fields = dict(self.semshare or {})
        namespace = fields.pop("namespace", DEFAULT_NAMESPACE)
        checked = NamespaceFields.parse({"namespace": namespace}).namespace
        if fields.get("max_divergence") is not None and not measured:
            raise InvalidParameter(
                f"max_divergence is {fields['max_divergence']!r}: the service measures no "
                "divergence, so it can't be kept to; leave it out, or let the operator set "
                "shadow_share",
                param="semshare.max_divergence",
            )
        return checked, ReusePolicy.from_mapping(fields) if fields else None


class NamespaceFields(StrictModel):
    """What lists and deletions of donors take, as a query."""

    namespace: Namespace = DEFAULT_NAMESPACE


class StreamOptions(StrictModel):
    """OpenAI's `stream_options`. `include_obfuscation` pads chunks, which here changes nothing."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationFields(ReuseFields):
    """What completions and chat completions have in common."""

    model: str | None = None
    n: int | None = Field(default=None, ge=1, le=_MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=_MAX_TOKEN_ID)
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
    """`POST /v1/completions`."""

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
    """`POST /v1/chat/completions`."""

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


class _PromptFields(StrictModel):
    """A prompt in exactly one of three forms."""

    text: str | None = None
    messages: Messages | None = None
    ids: TokenIds | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("text", "messages", "ids") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give the prompt as one of text, messages and ids; {len(given)} were given"
            )
        return self

    def prompt(self) -> Prompt:
        """In the form the engine takes."""
        if self.text is not None:
            return self.text
        if self.messages is not None:
            return [message.as_chat_message() for message in self.messages]
        return self.ids or []


TimeToLive = Annotated[float, Field(gt=0)]  # seconds


class DonorRequest(_PromptFields):
    """`PUT /v1/donors`."""

    namespace: Namespace = DEFAULT_NAMESPACE
    pinned: bool = False
    ttl_s: TimeToLive | None = None


class MatchRequest(_PromptFields, ReuseFields):
    """`POST /v1/match`."""
