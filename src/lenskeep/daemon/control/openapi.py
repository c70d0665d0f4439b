"""The OpenAPI 3.1 document, made from the table of routes and the structs of `messages/`: true by construction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import NODEFAULT
from msgspec.structs import fields

from lenskeep.daemon.control.answers import PROBLEM_JSON
from lenskeep.daemon.control.route import JSON, OCTETS, Route
from lenskeep.messages.control import Problem
from lenskeep.permissions import ROLES, TABLE

_PLACE = re.compile(r"\{(\w+)\}")
_BYTES = {"type": "string", "contentMediaType": OCTETS}


def describe(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """Return the document of these routes."""
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lenskeep device",
            "version": version,
            "description": "Keeps the right model running on every camera. Faults are problem documents (RFC 9457)"
            " with a stable code; `lenskeep explain CODE` says what each means.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Problem": {
                    "description": "What is wrong, the fix, and what remained unchanged",
                    "content": {PROBLEM_JSON: {"schema": schema_of[repr(Problem)]}},
                }
            },
        },
    }


def _types(routes: Sequence[Route]) -> list[Any]:
    wanted: dict[str, Any] = {repr(Problem): Problem}
    for route in routes:
        for type_ in (route.body, route.answer):
            if type_ not in (None, bytes):
                wanted[repr(type_)] = type_
        for field in fields(route.query):
            wanted[repr(field.type)] = field.type
    return list(wanted.values())


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    rule = None if route.permission is None else TABLE[route.permission]
    said: dict[str, Any] = {
        "operationId": _name(route),
        "summary": route.summary,
        "tags": [route.path.split("/")[2] if route.path.startswith("/v1/") else "service"],
        "parameters": _parameters(route, schema_of),
        "responses": {
            str(route.status): _answer(route, schema_of),
            "default": {"$ref": "#/components/responses/Problem"},
        },
        "security": [] if rule is None else [{"token": []}, *([{}] if "viewer" in rule.roles else [])],
        "x-permission": route.permission or "anybody",
        "x-roles": list(ROLES if rule is None else rule.roles),
    }
    if route.body is not None:
        said["requestBody"] = {"required": True, "content": {JSON: {"schema": schema_of[repr(route.body)]}}}
    if route.upload:
        said["requestBody"] = {"required": True, "content": {OCTETS: {"schema": _BYTES}}}
    return said


def _name(route: Route) -> str:
    words = re.findall(r"[A-Za-z0-9]+", route.path.removeprefix("/v1")) or ["capabilities"]
    return route.method.lower() + "".join(word.capitalize() for word in words)


def _parameters(route: Route, schema_of: dict[str, Any]) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PLACE.findall(route.path)
    ]
    for field in fields(route.query):
        schema = dict(schema_of[repr(field.type)])
        if field.default not in (NODEFAULT, None):
            schema["default"] = field.default
        said.append({"name": field.name, "in": "query", "required": field.required, "schema": schema})
    if route.method == "POST" and route.body is not None and route.repeatable:
        said.append(
            {
                "name": "Idempotency-Key", "in": "header", "required": False,
                "description": "The same key and request again give the same answer, once done, for a day",
                "schema": {"type": "string", "maxLength": 128},
            }
        )  # fmt: skip
    return said


def _answer(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    if route.answer is None:
        return {"description": "Done"}
    schema = _BYTES | {"contentMediaType": route.media} if route.answer is bytes else schema_of[repr(route.answer)]
    said: dict[str, Any] = {"description": route.summary, "content": {route.media: {"schema": schema}}}
    if route.status == 202:
        said["headers"] = {"Location": {"description": "Where the operation is", "schema": {"type": "string"}}}
    return said
