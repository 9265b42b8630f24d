"""The ASGI application: every route behind a door, and a door before what is no route."""

from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from penstock.api.context import Context
from penstock.api.door import Door
from penstock.api.problem import RefusalError
from penstock.api.routes import ROUTES

ALL_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"})


def make_app(context: Context) -> Starlette:
    """Routes match exactly: no redirect of slashes, no rewriting of paths; deny is the default."""
    app = Starlette(routes=list(_doors(context)))
    app.router.redirect_slashes = False
    app.router.default = Door(context, unknown_url, "unknown", ALL_METHODS)
    app.state.context = context
    return app


def _doors(context: Context) -> Iterable[BaseRoute]:
    by_path: dict[str, Door] = {}
    for route in ROUTES:
        methods = {route.method, "HEAD"} if route.method == "GET" else {route.method}
        assert route.path not in by_path, "one path, one endpoint"
        by_path[route.path] = Door(
            context,
            route.endpoint,
            route.path,
            frozenset(methods),
            is_open=route.is_open,
            is_anthropic=route.is_anthropic,
            is_page=route.is_page,
        )
    for path, door in by_path.items():
        yield Route(path, door)


async def unknown_url(request: Request) -> Response:
    """There is nothing here."""
    raise RefusalError(404, "unknown_url", "there is no such route; /openapi.json lists them.")
