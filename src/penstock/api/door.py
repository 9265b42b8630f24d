"""The door of every route: who may enter, with which method; and the answer to whatever goes wrong inside.

A route without a door does not exist (app.py builds them all from one list), so that nothing is open by
mistake: deny is the default, and what decides is the endpoint that was routed to, never the text of a path.
"""

import base64
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from penstock.api.context import Context
from penstock.api.problem import RefusalError, body_of, problem_of
from penstock.errors import PenstockError

Answerer = Callable[[Request], Awaitable[Response]]
CLIENT_CLOSED = 499
HOST_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]")
LOCAL_NAMES = {"localhost", "localhost."}


@dataclass(slots=True)
class Door:
    """An ASGI application around one endpoint. `is_open`: no key needed, nothing told but yes or no."""

    context: Context
    endpoint: Answerer
    name: str  # the route as it is written, for logs and metrics: never what a client typed
    methods: frozenset[str]
    is_open: bool = False
    is_anthropic: bool = False
    is_page: bool = False  # for browsers: they are asked for the key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        request = Request(scope, receive)
        request_id = self._request_id(request)
        scope["state"].update(request_id=request_id, key_id="", ignored=[])
        status = CLIENT_CLOSED

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                headers.append((b"x-request-id", request_id.encode()))
                headers.append((b"x-content-type-options", b"nosniff"))
                if ignored := scope["state"]["ignored"]:
                    headers.append((b"x-ignored-params", _names(ignored)))
            await send(message)

        try:
            try:
                self._enter(request)
                response = await self.endpoint(request)
            except Exception as error:
                response = self._refusal(error, request, request_id)
            await response(scope, receive, send_named)
        except Exception as error:  # while answering: the 200 is gone, the connection is cut
            self.context.log_defect(error, self.name, request_id)
            raise
        finally:
            status = scope["state"].get("refused", status)
            self.context.note(self.name, scope, status, time.monotonic() - began_s)

    def _request_id(self, request: Request) -> str:
        """The client's own where it is short and printable; for people and logs, never a key inside."""
        given = request.headers.get("x-request-id", "")
        if given and len(given) <= self.context.limits.request_id_chars and _is_printable(given):
            return given
        return f"req_{secrets.token_hex(12)}"

    def _enter(self, request: Request) -> None:
        host = self._host(request)
        if not self.is_open:
            self._check_site(request, host)
            self._check_key(request)
        if request.method not in self.methods:
            allowed = ", ".join(sorted(self.methods))
            raise RefusalError(
                405,
                "method_not_allowed",
                f"this route takes {allowed}; use one of them.",
                headers={"allow": allowed},
            )

    def _host(self, request: Request) -> str:
        hosts = request.headers.getlist("host")
        if len(hosts) > 1 or (not hosts and request.scope.get("http_version") == "1.1"):
            raise RefusalError(
                400,
                "invalid_host",
                f"the request has {len(hosts)} Host headers; HTTP/1.1 asks for exactly one.",
            )
        host = hosts[0] if hosts else "localhost"
        if not host or not set(host) <= HOST_CHARS:
            raise RefusalError(400, "invalid_host", "the Host header is no host and port; send one.")
        return host

    def _check_site(self, request: Request, host: str) -> None:
        """Pages of other sites, and names that somebody else's DNS points here, do not get in."""
        config = self.context.config
        name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if not self.context.keys.are_needed and not (
            name.lower() in LOCAL_NAMES or _is_address(name) or name.lower() in config.allowed_hosts
        ):
            raise RefusalError(
                403,
                "host_not_allowed",
                "this server has no API key and answers to addresses and localhost only; list the name in "
                "--allowed-hosts or set a key.",
            )
        origin = request.headers.get("origin")
        if origin is None or origin in config.allowed_origins:
            return
        if origin.partition("://")[2] != host:
            raise RefusalError(
                403,
                "origin_not_allowed",
                "pages of other sites may not send requests here; list the origin in --allowed-origins.",
            )

    def _check_key(self, request: Request) -> None:
        if not self.context.keys.are_needed:
            return
        given = request.headers.getlist("authorization")
        key = None
        if len(given) == 1 and given[0][:7].lower() == "bearer ":
            key = given[0][7:].strip()
        elif len(given) == 1 and given[0][:6].lower() == "basic ":
            key = _password(given[0][6:])  # how a browser brings it: any user, the key as password
        elif not given:
            key = request.headers.get("x-api-key")  # Anthropic's header
        key_id = self.context.keys.find(key)
        if key_id is None:
            raise RefusalError(
                401,
                "invalid_api_key",
                "no valid API key came with the request; send it as 'Authorization: Bearer KEY'.",
                headers={"www-authenticate": 'Basic realm="penstock"' if self.is_page else "Bearer"},
            )
        request.state.key_id = key_id

    def _refusal(self, error: Exception, request: Request, request_id: str) -> Response:
        problem = problem_of(error)
        if not isinstance(error, PenstockError):
            self.context.log_defect(error, self.name, request_id)
        return Response(
            body_of(problem, request_id=request_id, is_anthropic=self.is_anthropic),
            problem.status,
            problem.headers,
            media_type="application/json",
        )


def _password(encoded: str) -> str | None:
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        return None


def _is_printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _names(ignored: list[str]) -> bytes:
    shown = [name for name in ignored if _is_printable(name) and len(name) <= 64 and "," not in name]
    return ", ".join(shown[:20]).encode()
