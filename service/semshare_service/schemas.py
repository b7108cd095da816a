"""Requests, validated. Whatever passes here can be handed to the engine as it is.

Messages of errors name the field and what is allowed, never the value: it may be a prompt. What the
docstrings say of a field is its text in the service's description.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from semshare.config import DEFAULT_NAMESPACE, ReusePolicy
from semshare.types import ChatMessage, Prompt
from semshare_service.errors import InvalidParameter

MAX_TOKEN_ID = 2**31 - 1  # ids are int32 in the engine

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


def token_ids(value: object) -> list[int]:
    """`value`, if it is a prompt as token ids; `ValueError` otherwise."""
    if not isinstance(value, list) or not value:
        raise ValueError("token ids are a list of at least one whole number")
    if not all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in value):
        raise ValueError(f"every token id must be a whole number from 0 to {MAX_TOKEN_ID}")
    return value


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


class TextPart(BaseModel):
    """One of the parts in which OpenAI also sends a message's content.

    type: text is the only one offered.
    text: joined with the others' without anything in between.
    """

    type: Literal["text"]
    text: str


# Beside each check stands what it takes, for the service's description.
TokenIdsAsSent = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]], Field(min_length=1)]
TokenIds = Annotated[list[int], BeforeValidator(token_ids, json_schema_input_type=TokenIdsAsSent)]
# What an answer's message carries besides role and text; empty, it says nothing.
EMPTY_MESSAGE_FIELDS = (
    "annotations",
    "audio",
    "function_call",
    "name",
    "refusal",
    "tool_calls",
)


class Message(StrictModel):
    """One chat message.

    role:    `developer` is OpenAI's newer word for `system`.
    content: its text, or the parts of it.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str, BeforeValidator(_plain_text, json_schema_input_type=str | list[TextPart])
    ]

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, value: object) -> object:
        # So that an answer's own message can be sent back as part of the next request.
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item or key not in EMPTY_MESSAGE_FIELDS}

    def as_chat_message(self) -> ChatMessage:
        """In the form the engine takes; `developer` is OpenAI's newer word for `system`."""
        role = "system" if self.role == "developer" else self.role
        return ChatMessage(role=role, content=self.content)


Messages = Annotated[list[Message], Field(min_length=1)]


class ReuseFields(StrictModel):
    """The `semshare` field: a namespace, and the fields of a `ReusePolicy`.

    semshare: whose KV may be reused, and how.
    """

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
    """What lists and deletions of donors take, as a query.

    namespace: subdivides the tenant's own space.
    """

    namespace: Namespace = DEFAULT_NAMESPACE


class _PromptFields(StrictModel):
    """A prompt in exactly one of three forms.

    text:     as the model's tokenizer reads it.
    messages: a chat, in the model's own template.
    ids:      the model's token ids.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": kind}}}
                for name, kind in (("text", "string"), ("messages", "array"), ("ids", "array"))
            ]
        }
    )

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
    """`PUT /v1/donors`, with the prompt as one of `text`, `messages` and `ids`.

    namespace: where it is kept, and found.
    pinned:    never evicted.
    ttl_s:     seconds until it expires, pinned or not; null: it stays.
    """

    namespace: Namespace = DEFAULT_NAMESPACE
    pinned: bool = False
    ttl_s: TimeToLive | None = None


class MatchRequest(_PromptFields, ReuseFields):
    """`POST /v1/match`, with the prompt as one of `text`, `messages` and `ids`."""
