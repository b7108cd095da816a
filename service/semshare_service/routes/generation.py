"""Completions and chat completions, in OpenAI's form."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from aiohttp import web

from semshare.types import Answer, Prompt, TextDelta
from semshare_service.context import SERVICE, Service, tenant_of
from semshare_service.engine import Engine
from semshare_service.errors import ServiceUnavailable, UnknownModel
from semshare_service.exchange import read_body, request_id, respond
from semshare_service.logprobs import TokenBytes, named_tokens
from semshare_service.observed import Answered
from semshare_service.replies import Body, chat_body, completion_body
from semshare_service.schemas import ChatRequest, CompletionRequest, GenerationFields
from semshare_service.worker import Abandoned

routes = web.RouteTableDef()


@routes.post("/v1/completions")
async def complete(request: web.Request) -> web.Response:
    """A text completion in OpenAI's form."""
    fields = CompletionRequest.parse(await read_body(request))
    return await _generate(request, "completions", fields, fields.prompt, completion_body)


@routes.post("/v1/chat/completions")
async def chat(request: web.Request) -> web.Response:
    """A chat completion in OpenAI's form."""
    fields = ChatRequest.parse(await read_body(request))
    messages = [message.as_chat_message() for message in fields.messages]
    return await _generate(request, "chat", fields, messages, chat_body)


async def _generate(
    request: web.Request,
    route: str,
    fields: GenerationFields,
    prompt: Prompt,
    reply: Callable[..., Body],
) -> web.Response:
    service, tenant = request.app[SERVICE], tenant_of(request)
    options = fields.options(service.settings.default_max_tokens, measured=service.shadow.is_on)
    namespace = options["namespace"]
    options["namespace"] = tenant.space(namespace)
    model = _served_model(service, fields.model)

    def operation(engine: Engine, abandoned: Abandoned) -> tuple[Answer, TokenBytes]:
        answer = _whole_answer(engine.stream(prompt, **options), abandoned)
        named = named_tokens(found for choice in answer.choices for found in choice.logprobs)
        return answer, {token: engine.token_bytes(token) for token in named}

    served = await service.worker.submit(operation)
    answer, token_bytes = served.value
    if answer.donor is not None:
        answer = replace(answer, donor=replace(answer.donor, namespace=namespace))
    service.answered(
        Answered(
            request_id=request_id(request),
            route=route,
            tenant=tenant,
            namespace=namespace,
            prompt=prompt,
            policy=options["policy"],
            answer=answer,
            queue_s=served.queue_s,
            ended=time.time(),
        )
    )
    body = reply(answer, model=model, queue_s=served.queue_s, token_bytes=token_bytes)
    return respond(request, body)


def _whole_answer(deltas: Iterator[TextDelta], abandoned: Abandoned) -> Answer:
    """The answer at the end of a stream; one that nobody waits for ends between two tokens."""
    try:
        for delta in deltas:
            if delta.answer is not None:
                return delta.answer
            if abandoned():
                break
    finally:
        # Now, not when the error below is forgotten: a stream left open holds KV slots.
        if isinstance(deltas, Generator):
            deltas.close()
    raise ServiceUnavailable("the request was given up before its answer was complete")


def _served_model(service: Service, wanted: str | None) -> str:
    """The name to answer with; `UnknownModel` where the request asks for another model."""
    loaded = service.worker.status().model or service.settings.model
    if wanted is not None and wanted not in (loaded, service.settings.model):
        raise UnknownModel(f"the model {wanted!r} is not served here: this is {loaded!r}")
    return loaded
