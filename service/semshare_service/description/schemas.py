"""JSON schemas of requests and answers: the models' own, with the texts of their docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from pydantic_core import core_schema

from semshare.config import ReusePolicy
from semshare_service.generation_schemas import ChatRequest, CompletionRequest
from semshare_service.openai_fields import (
    CHAT_NEUTRAL,
    CHAT_UNREAD,
    COMPLETION_NEUTRAL,
    COMPLETION_UNREAD,
)
from semshare_service.schemas import EMPTY_MESSAGE_FIELDS, Message, NamespaceFields

Schema = dict[str, Any]
Models = Iterable[type[BaseModel]]

_REF = "#/components/schemas/"
_REUSE = "ReuseRequest"
# In place of what the library says of it, which is about its own settings.
_MAX_DIVERGENCE = (
    "KL in nats; reuse steps down (semantic → span → prefix) in this namespace while what is "
    "measured is above it. null: the setting `shadow_max_divergence`. A number is refused where "
    "nothing is measured (`shadow_share` is 0)."
)


def ref(model: type[BaseModel]) -> Schema:
    """A reference to one of `component_schemas`."""
    return {"$ref": _REF + model.__name__}


def first_paragraph(documented: type) -> str:
    """Of a docstring, as one line."""
    return (inspect.getdoc(documented) or "").partition("\n\n")[0].replace("\n", " ")


def component_schemas(sent: Models, told: Models) -> dict[str, Schema]:
    """The schemas of all models, and of those in them, by their names.

    Args:
        sent: bodies of requests.
        told: bodies of answers.

    """
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = []
    wanted += [(model, "validation") for model in sorted(sent, key=_name)]
    wanted += [(model, "serialization") for model in sorted(told, key=_name)]
    _, found = models_json_schema(
        wanted, ref_template=_REF + "{model}", schema_generator=_WithTexts
    )
    schemas: dict[str, Schema] = found["$defs"]
    _add_openai_fields(schemas)
    schemas[_REUSE] = _reuse_request()
    for model, _ in wanted:
        if "semshare" in model.model_fields and model in sent:
            field = schemas[model.__name__]["properties"]["semshare"]
            schemas[model.__name__]["properties"]["semshare"] = {
                "anyOf": [{"$ref": _REF + _REUSE}, {"type": "null"}],
                "description": field["description"],
            }
    return schemas


def query_schemas(query: type[BaseModel]) -> dict[str, Schema]:
    """The schemas of a query's fields, by their names."""
    properties = query.model_json_schema(schema_generator=_WithTexts)["properties"]
    return {name: _without_null(schema) for name, schema in properties.items()}


class _WithTexts(GenerateJsonSchema):
    """Puts the docstrings' texts in place of pydantic's titles, which repeat names."""

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        made = super().model_schema(schema)
        made.pop("title", None)
        made["description"] = first_paragraph(schema["cls"])
        texts = _field_texts(schema["cls"])
        for name, field in made["properties"].items():
            field.pop("title", None)
            if name in texts:
                field["description"] = texts[name]
        return made


def _field_texts(documented: type) -> dict[str, str]:
    """What a class's docstring, and those of its bases, say of each field."""
    texts: dict[str, str] = {}
    for one in reversed(documented.__mro__):
        found = re.findall(r"^(\w+): +(.*(?:\n +.*)*)", inspect.cleandoc(one.__doc__ or ""), re.M)
        texts |= {name: " ".join(said.split()) for name, said in found}
    return texts


def _name(model: type[BaseModel]) -> str:
    return model.__name__


def _add_openai_fields(schemas: dict[str, Schema]) -> None:
    """Those of OpenAI's fields that a model does not have, because they are dropped before."""
    for model, neutral, unread in (
        (CompletionRequest, COMPLETION_NEUTRAL, COMPLETION_UNREAD),
        (ChatRequest, CHAT_NEUTRAL, CHAT_UNREAD),
    ):
        schemas[model.__name__]["properties"] |= {
            **{
                field: {"enum": [*values, None], "description": "not offered: asks for nothing"}
                for field, values in neutral.items()
            },
            **{field: {"description": "not read"} for field in sorted(unread)},
        }
    schemas[Message.__name__]["properties"] |= {
        field: {
            "enum": [None, False, 0, "", [], {}],
            "description": "not offered: empty, it says nothing",
        }
        for field in EMPTY_MESSAGE_FIELDS
    }


def _reuse_request() -> Schema:
    """The `semshare` field of a request: a policy, and the namespace beside it."""
    policy = TypeAdapter(ReusePolicy).json_schema()
    texts = _field_texts(ReusePolicy) | {"max_divergence": _MAX_DIVERGENCE}
    properties = {"namespace": query_schemas(NamespaceFields)["namespace"]}
    for name, schema in policy["properties"].items():
        properties[name] = {key: value for key, value in schema.items() if key != "title"}
        properties[name]["description"] = texts[name]
    return {
        "type": "object",
        "description": first_paragraph(ReusePolicy),
        "properties": properties,
        "additionalProperties": False,
    }


def _without_null(schema: Schema) -> Schema:
    """Of a field in a query, which is left out rather than null."""
    kept = {key: value for key, value in schema.items() if key != "anyOf"}
    for choice in schema.get("anyOf", ()):
        if choice != {"type": "null"}:
            kept |= choice
    if kept.get("default", ...) is None:
        del kept["default"]
    return kept
