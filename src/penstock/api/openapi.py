"""/openapi.json, generated from the route list and the types that requests and answers really have."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.problem import ErrorAnswer
from penstock.env import penstock_version

if TYPE_CHECKING:
    from penstock.api.routes import RouteSpec

Schema = dict[str, Any]  # Any: JSON
REF = "#/components/schemas/{name}"


async def openapi(request: Request) -> Response:
    """This description."""
    return Response(_encoded(), media_type="application/json")


@lru_cache(maxsize=1)
def _encoded() -> bytes:
    from penstock.api.routes import ROUTES

    return msgspec.json.encode(describe(ROUTES))


def describe(routes: "tuple[RouteSpec, ...]") -> Schema:
    """An OpenAPI 3.1 document."""
    kinds = [
        kind for route in routes for kind in (route.takes, route.gives, route.streams) if kind is not None
    ]
    kinds = list(dict.fromkeys([*kinds, ErrorAnswer]))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REF)
    of = dict(zip(kinds, schemas, strict=True))
    paths: Schema = {}
    for route in routes:
        path = route.path.replace(":path}", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "penstock", "version": penstock_version()},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: "RouteSpec", of: dict[Any, Schema]) -> Schema:  # Any: types
    summary = (route.endpoint.__doc__ or "").strip().splitlines()[0]
    operation: Schema = {"operationId": f"{route.method.lower()} {route.path}", "summary": summary}
    if not route.is_open:
        operation["security"] = [{"key": []}]
    if "{name" in route.path:
        operation["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if route.path == "/health":
        operation["parameters"] = [{"name": "deep", "in": "query", "schema": {"enum": ["1"]}}]
    if route.takes is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": of[route.takes]}},
        }
    content: Schema = {}
    if route.gives is not None:
        content["application/json"] = {"schema": of[route.gives]}
    if route.streams is not None:
        content["text/event-stream"] = {"itemSchema": of[route.streams]}
    answers = {str(status): {"description": "the answer", "content": content} for status in route.statuses}
    if not content:
        answers = {"200": {"description": "the answer"}}
    error = {"description": "a refusal", "content": {"application/json": {"schema": of[ErrorAnswer]}}}
    return {**operation, "responses": {**answers, "default": error}}
