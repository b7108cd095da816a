"""The bodies of answers in OpenAI's form, whole and as a stream's chunks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from semshare_service.description.answers import AnswerExtension


class CachedTokens(BaseModel):
    """Prompt tokens that were not computed.

    cached_tokens: those that were reused without loss, `prefix` in `semshare`.
    """

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request.

    prompt_tokens:         of the prompt, reused ones included.
    completion_tokens:     of all choices.
    total_tokens:          the sum of both.
    prompt_tokens_details: more of the prompt.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


FinishReasonName = Literal["stop", "length"]


class CompletionLogprobs(BaseModel):
    r"""One element a token, in natural logarithms; −9999 stands for −∞.

    tokens:         their texts; `bytes:\xe2` where a token is part of a character.
    token_logprobs: of each.
    top_logprobs:   of the likeliest tokens in its place, and of itself, by their texts.
    text_offset:    characters of the answer before it.
    """

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation.

    index:         which of the `n`.
    text:          what the model says after the prompt.
    logprobs:      null where none were asked for.
    finish_reason: `length` also where the deadline or the context's end cut it short.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReasonName


class Completion(BaseModel):
    """OpenAI's text completion, with `semshare` besides.

    id:       of this answer.
    object:   what this is.
    model:    the name of the one that is served.
    created:  seconds since the epoch.
    choices:  the `n` answers.
    usage:    tokens.
    semshare: where the prompt's KV came from.
    """

    id: str
    object: Literal["text_completion"]
    model: str
    created: int
    choices: list[CompletionChoice]
    usage: Usage
    semshare: AnswerExtension


class TokenLogprob(BaseModel):
    r"""How likely the model found a token.

    token:   its text; `bytes:\xe2` where it is part of a character.
    logprob: natural logarithm; −9999 stands for −∞.
    bytes:   its text in UTF-8.
    """

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """The same of a token of the answer.

    top_logprobs: of the likeliest tokens in its place.
    """

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message.

    content: one element for each token.
    refusal: always null.
    """

    content: list[ChosenLogprob]
    refusal: None


class AnswerMessage(BaseModel):
    """What the model says.

    role:    always the same.
    content: its text.
    refusal: always null.
    """

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One continuation.

    index:         which of the `n`.
    message:       what the model says.
    logprobs:      null where none were asked for.
    finish_reason: `length` also where the deadline or the context's end cut it short.
    """

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReasonName


class ChatCompletion(BaseModel):
    """OpenAI's chat completion, with `semshare` besides.

    id:       of this answer.
    object:   what this is.
    model:    the name of the one that is served.
    created:  seconds since the epoch.
    choices:  the `n` answers.
    usage:    tokens.
    semshare: where the prompt's KV came from.
    """

    id: str
    object: Literal["chat.completion"]
    model: str
    created: int
    choices: list[ChatChoice]
    usage: Usage
    semshare: AnswerExtension


class CompletionChunkChoice(BaseModel):
    """The next piece of one continuation.

    index:         which of the `n`.
    text:          what comes next.
    logprobs:      of its tokens; null where none were asked for.
    finish_reason: null before its end.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReasonName | None


class _Chunk(BaseModel):
    """What the chunks of both routes have in common.

    id:       of the answer, the same in all its chunks.
    created:  seconds since the epoch, the same in all its chunks.
    model:    the name of the one that is served.
    usage:    with `include_usage`: null before the last chunk, which has it, and no choices.
    semshare: where the prompt's KV came from; only in the chunk that ends the last choice.
    """

    id: str
    created: int
    model: str
    usage: Usage | None = None
    semshare: AnswerExtension | None = None


class CompletionChunk(_Chunk):
    """One event of a streamed text completion.

    object:  what this is.
    choices: one, or none in the chunk that has `usage`.
    """

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]


class ChatDelta(BaseModel):
    """A piece of the message.

    role:    only in the first of a choice.
    content: what comes next.
    """

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChunkChoice(BaseModel):
    """The next piece of one continuation.

    index:         which of the `n`.
    delta:         what comes next.
    logprobs:      of its tokens; null where none were asked for.
    finish_reason: null before its end.
    """

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReasonName | None


class ChatChunk(_Chunk):
    """One event of a streamed chat completion.

    object:  what this is.
    choices: one, or none in the chunk that has `usage`.
    """

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
