"""The OpenAPI 3.1 document, made of the table of operations and of the types that validate requests. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from calnet import __version__
from calnet.roles.server.rest import models
from calnet.roles.server.rest.operations import Access, Operation

_REF: Final = "#/components/schemas/{name}"
_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_WHY: Final = {
    400: "Malformed: no JSON, or a protocol error",
    401: "No credentials, or none that hold",
    403: "The principal may not do that",
    404: "There is no such thing, or it is another user's",
    408: "The body did not come in time",
    409: "Taken, or in the way of something else",
    412: "It was changed since the etag in If-Match",
    413: "The body is too large",
    415: "The body is not application/json",
    422: "A value that can't be",
    429: "Too many credentials that do not hold came from this address",
    503: "The server is starting or stopping, its disk is full, or too much is asked at once",
}


def document(operations: Sequence[Operation], url: str) -> dict[str, Any]:
    """The document of these operations, served below `url`."""
    types = {kind for operation in operations for kind in (operation.answer, operation.body) if kind is not None} | {models.Problem, models.AuditRow}
    _, components = msgspec.json.schema_components(sorted(types, key=lambda kind: kind.__name__), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    paths["/events"] = {"get": _events()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Calnet",
            "version": __version__,
            "description": "Management of a Calnet network: users, nodes, pre-auth keys, policy, tokens, routes, settings, audit log, live events.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": url}],
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "an API token (calnet-token-…), or an access token of the OpenID provider"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "calnet_session",
                    "description": "a browser that signed in; changes need X-Calnet-Request",
                },
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": re.sub(r"[^a-z]+", "_", f"{operation.method} {operation.path}".lower()).strip("_"),
        "summary": operation.summary,
        "tags": [operation.path.split("/")[1]],
        "description": f"For {operation.access.value}. Scope: {operation.scope or 'none needed'}.",
        "x-calnet-access": operation.access.name.lower(),
        "x-calnet-scope": operation.scope,
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation), *_header_parameters(operation)],
        "responses": _responses(operation),
    }
    if operation.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(operation.body)}}}
    return found


def _ref(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9._:-]+$"}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in re.findall(r"{(\w+)}", path)]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    query = operation.query
    _, components = msgspec.json.schema_components([query], ref_template=_REF)
    found = components[query.__name__]
    required, values = found.get("required", []), found.get("properties", {})
    if "sort" in values and operation.answer is not None:
        names = models.sortable(models.row_of(operation.answer))
        values["sort"] = values["sort"] | {"enum": ["", *(f"{sign}{name}" for name in names for sign in ("", "-"))]}
    return [{"name": name, "in": "query", "required": name in required, "schema": value} for name, value in values.items()]


def _header_parameters(operation: Operation) -> list[dict[str, Any]]:
    found = []
    if operation.guarded:
        text = "the ETag the thing must still have"
        found.append({"name": "If-Match", "in": "header", "description": text, "schema": {"type": "string", "pattern": '^(\\*|"[0-9a-f]{24}")$'}})
    if operation.create:
        text = "repeat a request with the same key, and it is carried out once and answered alike, for a day"
        schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
        found.append({"name": "Idempotency-Key", "in": "header", "description": text, "schema": schema})
    return found


def statuses(operation: Operation) -> set[int]:
    """The statuses, beside success, that the operation may answer with."""
    found = {400, 401, 403, 422, 429, 503}
    if "{" in operation.path or operation.body is not None:
        found.add(404)
    if operation.verb == "write":
        found |= {404, 409}
    if operation.guarded:
        found.add(412)
    if operation.body is not None:
        found |= {408, 413, 415}
    return found


def _responses(operation: Operation) -> dict[str, Any]:
    success: dict[str, Any] = {"description": HTTPStatus(operation.status).phrase}
    if operation.answer is not None:
        success["content"] = {"application/json": {"schema": _ref(operation.answer)}}
        if "etag" in operation.answer.__struct_fields__:
            success["headers"] = {"ETag": {"schema": {"type": "string"}}}
    found = {str(operation.status): success}
    if operation.method == "GET" and operation.answer is not None and "etag" in operation.answer.__struct_fields__:
        found["304"] = {"description": "It is as If-None-Match says"}
    found |= {str(status): {"description": _WHY[status], "content": _PROBLEM} for status in sorted(statuses(operation))}
    return found


def _events() -> dict[str, Any]:
    return {
        "operationId": "get_events",
        "summary": "Follow changes as they happen",
        "tags": ["events"],
        "description": "Server-Sent Events: `change` events are audit records, their id the sequence number: give it as Last-Event-ID to go on from there. "
        "The stream begins with the newest one's id. A `reset` event says that this log does not have the change of Last-Event-ID: what happened in between "
        "can't be told, so read anew what you show. `presence` events say that a node came or went. For every principal; one with the role user hears of its "
        "own nodes. Scope: events:read.",
        "x-calnet-access": Access.OWN.name.lower(),
        "x-calnet-scope": "events:read",
        "parameters": [{"name": "Last-Event-ID", "in": "header", "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"}}],
        "responses": {
            "200": {"description": "The stream", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
            **{str(status): {"description": _WHY[status], "content": _PROBLEM} for status in (400, 401, 403, 422, 429, 503)},
        },
    }
