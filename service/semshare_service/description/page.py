"""The OpenAPI document as one page that loads nothing and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from semshare_service.description.schemas import Schema

_SCHEMA = "#/components/schemas/"
_NULL = {"type": "null"}
# Bounds of a value, in the words of a reader.
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "minLength": "at least {} long",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "pattern": "matches {}",
}


@dataclass(frozen=True, slots=True)
class ReferencePage:
    """html:   the page.
    policy: its Content-Security-Policy: nothing but the page's own style sheet.
    """

    html: str
    policy: str


def reference_page(document: Schema) -> ReferencePage:
    """A page of everything that an OpenAPI document of `openapi_document` says."""
    environment = Environment(
        loader=PackageLoader("semshare_service", "description"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "text": _linker(document["components"]["schemas"]),
        "type": _type,
        "bounds": _bounds,
        "example": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    style = (files("semshare_service") / "description" / "reference.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    html = environment.get_template("reference.html.j2").render(
        document=document,
        style=Markup(style),  # noqa: S704 - ours, and escaping it would change its digest
        chapters=_chapters(document),
    )
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return ReferencePage(html, policy)


def _chapters(document: Schema) -> dict[str, list[Mapping[str, Any]]]:
    """Operations with their method and path, by tag."""
    chapters: dict[str, list[Mapping[str, Any]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            told = {**operation, "method": method.upper(), "path": path}
            chapters[operation["tags"][0]].append(told)
    return chapters


def _linker(names: Container[str]) -> Callable[[str], Markup]:
    """A filter that writes a docstring as HTML: its paragraphs, its `code`, links to objects."""

    def code(found: re.Match[str]) -> str:
        marked = f"<code>{found[1]}</code>"
        return f'<a href="#{found[1]}">{marked}</a>' if found[1] in names else marked

    def text(docstring: str) -> Markup:
        paragraphs = [str(escape(one)) for one in docstring.split("\n\n") if one]
        marked = [f"<p>{re.sub('`([^`]+)`', code, one)}</p>" for one in paragraphs]
        return Markup("\n".join(marked))  # noqa: S704 - escaped above

    return text


def _type(schema: Schema) -> Markup:
    """What a value may be, with links to the objects that have names."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_SCHEMA)
        return Markup('<a href="#{0}">{0}</a>').format(name)
    if "const" in schema or "enum" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return Markup(", ").join(
            Markup("<code>{}</code>").format(json.dumps(value)) for value in values
        )
    if "anyOf" in schema:
        write = _bounded_type if _is_one_of_several(schema) else _type
        return Markup(" or ").join(write(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return Markup("list of {}").format(_type(schema["items"]))
    if schema.get("type") == "object":
        values = [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
        named = next((value for value in values if isinstance(value, dict)), None)
        return Markup("map") if named is None else Markup("map to {}").format(_type(named))
    return escape(schema.get("type", "anything"))


def _bounded_type(schema: Schema) -> Markup:
    """What a value may be, and its bounds, where it may also be something else."""
    bounds = _bounds(schema)
    words = Markup('{} <span class="faint">({})</span>')
    return words.format(_type(schema), bounds) if bounds else _type(schema)


def _is_one_of_several(schema: Schema) -> bool:
    return len([choice for choice in schema.get("anyOf", ()) if choice != _NULL]) > 1


def _bounds(schema: Schema) -> str:
    """The bounds of a value, and of its elements; and its default, if it says something."""
    said = [words.format(schema[name]) for name, words in _BOUNDS.items() if name in schema]
    if not _is_one_of_several(schema):
        said += [told for choice in schema.get("anyOf", ()) if (told := _bounds(choice))]
    if "items" in schema and (told := _bounds(schema["items"])):
        said.append(f"each {told}")
    if schema.get("default") not in (None, [], {}):
        said.append(f"by default {json.dumps(schema['default'])}")
    return ", ".join(said)
