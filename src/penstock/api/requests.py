"""What every generating route does first: body, struct, model name, time. Called by those routes."""

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.context import Context
from penstock.api.decode import to_struct
from penstock.api.problem import RefusalError
from penstock.api.strict_json import BIG_BODY_BYTES, read_json
from penstock.errors import InvalidRequestError

Body = TypeVar("Body", bound=msgspec.Struct)
ENCODER = msgspec.json.Encoder()
TIMEOUT_HEADER = "x-request-timeout-s"


async def read_body(request: Request, context: Context, kind: type[Body]) -> tuple[Body, int]:
    """(the body as `kind`, its bytes). Names ignored fields in the request's state, for the header."""
    check_type(request)
    # bounded in bytes and time by the protocol; request.body() would keep it as long as the answer takes
    body = b"".join([piece async for piece in request.stream()])
    depth, is_strict = context.limits.json_depth, context.config.strict
    if len(body) > BIG_BODY_BYTES:
        made, ignored = await context.engine.offload(_decode, body, depth, kind, is_strict)
    else:
        made, ignored = _decode(body, depth, kind, is_strict)
    if getattr(made, "user", None) is not None:
        ignored.append("user")
    request.state.ignored = ignored
    return made, len(body)


def _decode(body: bytes, max_depth: int, kind: type[Body], is_strict: bool) -> tuple[Body, list[str]]:
    return to_struct(read_json(body, max_depth=max_depth), kind, is_strict=is_strict)


def check_type(request: Request) -> None:
    """JSON in UTF-8, or nothing said. A missing type is taken for JSON."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise RefusalError(
            415,
            "unsupported_media_type",
            "the body is compressed; send it as it is, without content-encoding.",
        )
    kind, _, options = request.headers.get("content-type", "application/json").partition(";")
    charset = options.strip().lower().removeprefix("charset=").strip('"')
    is_json = kind.strip().lower() in ("application/json", "") or kind.strip().lower().endswith("+json")
    if not is_json or charset not in ("", "utf-8", "utf8"):
        raise RefusalError(415, "unsupported_media_type", "the body must be application/json in UTF-8.")


def check_model(name: str, context: Context) -> None:
    if name not in (context.model_name, context.engine.facts.name):
        raise RefusalError(
            404, "model_not_found", f"no model {name[:80]!r} is served here; ask for {context.model_name!r}."
        )


def timeout_of(request: Request, given: float | None) -> float | None:
    """The smaller of the body's `timeout` and the header; the server's own is never raised by either."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return given
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise InvalidRequestError(
            f"the header {TIMEOUT_HEADER} is no number of seconds above 0; give one.", param=TIMEOUT_HEADER
        )
    return seconds if given is None else min(seconds, given)


def json_response(answer: object) -> Response:
    return Response(ENCODER.encode(answer), media_type="application/json")
