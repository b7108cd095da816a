"""Completions and chat completions, in OpenAI's form, whole or as events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass, replace

from aiohttp import web

from semshare.types import Answer, GenerateOptions, Prompt, TextDelta
from semshare_service.chunks import ChunkWriter, Piece
from semshare_service.context import SERVICE, Service, tenant_of
from semshare_service.engine import Engine
from semshare_service.errors import UnknownModel
from semshare_service.exchange import read_body, request_id, respond
from semshare_service.generation_schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationFields,
)
from semshare_service.jobs import Abandoned
from semshare_service.logprobs import named_tokens
from semshare_service.observed import Answered
from semshare_service.replies import CHAT, COMPLETION, AnswerForm, Body, answer_body, choice_bodies
from semshare_service.streams import Events, send_events
from semshare_service.tenants import Tenant

routes = web.RouteTableDef()


@routes.post("/v1/completions")
async def complete(request: web.Request) -> web.StreamResponse:
    """A text completion in OpenAI's form."""
    _refuse_unless_room(request)
    fields = CompletionRequest.parse(await read_body(request))
    return await _generate(request, COMPLETION, fields, fields.prompt)


@routes.post("/v1/chat/completions")
async def chat(request: web.Request) -> web.StreamResponse:
    """A chat completion in OpenAI's form."""
    _refuse_unless_room(request)
    fields = ChatRequest.parse(await read_body(request))
    messages = [message.as_chat_message() for message in fields.messages]
    return await _generate(request, CHAT, fields, messages)


def _refuse_unless_room(request: web.Request) -> None:
    """Before the body is read: clients that are refused come again, all of them together."""
    request.app[SERVICE].worker.check_room(tenant_of(request))


async def _generate(
    request: web.Request, form: AnswerForm, fields: GenerationFields, prompt: Prompt
) -> web.StreamResponse:
    service, tenant = request.app[SERVICE], tenant_of(request)
    options = fields.options(service.settings.default_max_tokens, measured=service.shadow.is_on)
    namespace = options["namespace"]
    options["namespace"] = tenant.space(namespace)
    asked = _Asked(service, request_id(request), form, tenant, namespace, prompt, options)
    model = _served_model(service, fields.model)
    if fields.stream:
        writer = ChunkWriter(form, model=model, include_usage=fields.include_usage)
        return await send_events(request, _events(asked, writer))
    return respond(request, await _whole(asked, model))


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request for an answer. `namespace` is the tenant's; `options` name the engine's."""

    service: Service
    request_id: str
    form: AnswerForm
    tenant: Tenant
    namespace: str
    prompt: Prompt
    options: GenerateOptions

    def deltas(self, engine: Engine, abandoned: Abandoned) -> Generator[TextDelta]:
        """The engine's pieces. Closing it, or nobody waiting any more, frees all KV slots."""
        options: GenerateOptions = {**self.options, "given_up": abandoned}
        yield from engine.stream(self.prompt, **options)

    def ended(self, answer: Answer, queue_s: float) -> Answer:
        """The answer in the tenant's own words; whoever listens is told of it."""
        if answer.donor is not None:
            answer = replace(answer, donor=self.tenant.own(answer.donor))
        self.service.answered(
            Answered(
                request_id=self.request_id,
                route=self.form.route,
                tenant=self.tenant,
                namespace=self.namespace,
                prompt=self.prompt,
                policy=self.options["policy"],
                answer=answer,
                queue_s=queue_s,
                ended=time.time(),
            )
        )
        return answer


async def _whole(asked: _Asked, model: str) -> Body:
    def operation(engine: Engine, abandoned: Abandoned) -> tuple[Answer, list[Body]]:
        with closing(asked.deltas(engine, abandoned)) as deltas:
            answer = next(delta.answer for delta in deltas if delta.answer is not None)
        named = named_tokens(found for choice in answer.choices for found in choice.logprobs)
        token_bytes = {token: engine.token_bytes(token) for token in named}
        return answer, choice_bodies(answer, asked.form, token_bytes)

    served = await asked.service.worker.submit(operation, asked.tenant)
    answer, choices = served.value
    answer = asked.ended(answer, served.queue_s)
    return answer_body(answer, choices, asked.form, model=model, queue_s=served.queue_s)


async def _events(asked: _Asked, writer: ChunkWriter) -> AsyncGenerator[Events]:
    def operation(engine: Engine, abandoned: Abandoned) -> Generator[Piece]:
        with closing(asked.deltas(engine, abandoned)) as deltas:
            for delta in deltas:
                named = named_tokens(delta.logprobs)
                yield Piece(delta, {token: engine.token_bytes(token) for token in named})

    answer, queue_s = None, 0.0
    async with aclosing(asked.service.worker.stream(operation, asked.tenant)) as arriving:
        async for served in arriving:
            chunks = [chunk for piece in served.value for chunk in writer.piece(piece)]
            if chunks:
                yield Events(chunks)
            answer, queue_s = served.value[-1].delta.answer, served.queue_s
    # Only now, so that whoever has the whole answer finds its place free.
    assert answer is not None  # noqa: S101 - the engine's last piece has it
    answer = asked.ended(answer, queue_s)
    yield Events([*writer.end(answer, queue_s=queue_s)], are_last=True)


def _served_model(service: Service, wanted: str | None) -> str:
    """The name to answer with; `UnknownModel` where the request asks for another model."""
    loaded = service.worker.status().model or service.settings.model
    if wanted is not None and wanted not in (loaded, service.settings.model):
        raise UnknownModel(f"the model {wanted!r} is not served here: this is {loaded!r}")
    return loaded
