"""The routes. Each reads, submits one operation to the worker, and writes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web

from semshare.types import Answer, Prompt, TextDelta
from semshare_service.engine import Engine
from semshare_service.errors import ServiceUnavailable, UnknownModel
from semshare_service.exchange import read_body, respond
from semshare_service.logprobs import TokenBytes, named_tokens
from semshare_service.replies import (
    Body,
    chat_body,
    completion_body,
    donor_body,
    list_body,
    match_body,
)
from semshare_service.schemas import (
    ChatRequest,
    CompletionRequest,
    DonorRequest,
    GenerationFields,
    MatchRequest,
    NamespaceFields,
)
from semshare_service.settings import ServiceSettings
from semshare_service.worker import Abandoned, ModelWorker, Operation


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes share."""

    settings: ServiceSettings
    worker: ModelWorker
    started: int  # seconds since the epoch


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
routes = web.RouteTableDef()


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    """Liveness: the process answers."""
    return respond(request, {"status": "ok", "version": _version()})


@routes.get("/ready")
async def ready(request: web.Request) -> web.Response:
    """Readiness: the model is loaded and its worker alive. 503 with the same form if not."""
    status = request.app[SERVICE].worker.status()
    body = {
        "status": status.state,
        "model": status.model,
        "max_context": status.max_context,
        "queue": {"waiting": status.waiting, "limit": status.limit, "running": status.running},
        "reason": status.reason,
    }
    return respond(request, body, status=200 if status.state == "ready" else 503)


@routes.get("/v1/models")
async def models(request: web.Request) -> web.Response:
    """The one model, in OpenAI's form."""
    service = request.app[SERVICE]
    status = service.worker.status()
    if status.model is None:
        raise ServiceUnavailable(
            "the model is not loaded: GET /ready says how it stands", retry_after_s=1.0
        )
    model = {
        "id": status.model,
        "object": "model",
        "created": service.started,
        "owned_by": "semshare",
        "max_model_len": status.max_context,
    }
    return respond(request, list_body([model]))


@routes.post("/v1/completions")
async def complete(request: web.Request) -> web.Response:
    """A text completion in OpenAI's form."""
    fields = CompletionRequest.parse(await read_body(request))
    return await _generate(request, fields, fields.prompt, completion_body)


@routes.post("/v1/chat/completions")
async def chat(request: web.Request) -> web.Response:
    """A chat completion in OpenAI's form."""
    fields = ChatRequest.parse(await read_body(request))
    messages = [message.as_chat_message() for message in fields.messages]
    return await _generate(request, fields, messages, chat_body)


@routes.put("/v1/donors")
async def remember(request: web.Request) -> web.Response:
    """Compute a prompt in full and keep it as a donor."""
    fields = DonorRequest.parse(await read_body(request))

    def operation(engine: Engine, _: Abandoned) -> Body:
        donor = engine.remember(fields.prompt(), namespace=fields.namespace, pinned=fields.pinned)
        return donor_body(donor)

    return await _run(request, operation)


@routes.get("/v1/donors")
async def donors(request: web.Request) -> web.Response:
    """The donors of one namespace."""
    namespace = NamespaceFields.parse(request.query).namespace

    def operation(engine: Engine, _: Abandoned) -> Body:
        return list_body([donor_body(donor) for donor in engine.donors(namespace=namespace)])

    return await _run(request, operation)


@routes.delete("/v1/donors/{id}")
async def forget(request: web.Request) -> web.Response:
    """Drop one donor."""
    namespace = NamespaceFields.parse(request.query).namespace
    donor_id = request.match_info["id"]

    def operation(engine: Engine, _: Abandoned) -> Body:
        engine.forget(donor_id, namespace=namespace)
        return {"id": donor_id, "object": "donor", "deleted": True}

    return await _run(request, operation)


@routes.post("/v1/match")
async def match(request: web.Request) -> web.Response:
    """The reuse plan of a prompt. Nothing is computed."""
    fields = MatchRequest.parse(await read_body(request))
    namespace, policy = fields.reuse()

    def operation(engine: Engine, _: Abandoned) -> Body:
        return match_body(engine.plan(fields.prompt(), policy=policy, namespace=namespace))

    return await _run(request, operation)


async def _run(request: web.Request, operation: Operation[Body]) -> web.Response:
    served = await request.app[SERVICE].worker.submit(operation)
    return respond(request, served.value)


async def _generate(
    request: web.Request,
    fields: GenerationFields,
    prompt: Prompt,
    reply: Callable[..., Body],
) -> web.Response:
    service = request.app[SERVICE]
    options = fields.options(service.settings.default_max_tokens)
    model = _served_model(service, fields.model)

    def operation(engine: Engine, abandoned: Abandoned) -> tuple[Answer, TokenBytes]:
        answer = _whole_answer(engine.stream(prompt, **options), abandoned)
        named = named_tokens(found for choice in answer.choices for found in choice.logprobs)
        return answer, {token: engine.token_bytes(token) for token in named}

    served = await service.worker.submit(operation)
    answer, token_bytes = served.value
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


def _version() -> str:
    try:
        return version("semshare")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
