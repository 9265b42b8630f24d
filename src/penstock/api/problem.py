"""Errors as HTTP answers: one body shape, one status per error, never a path, a key or a traceback.

Called by everything in this room that answers. Statuses of PenstockErrors hang on their classes; what only a
server can refuse (a key, a route, a size) is an RefusalError.
"""

from collections.abc import Mapping

import msgspec

from penstock.errors import InvalidRequestError, OverloadedError, PenstockError

MAX_MESSAGE_CHARS = 1000


class RefusalError(PenstockError):
    """A refusal that only HTTP knows. `headers` go out with it (allow, retry-after, connection)."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = status
        self.code = code
        self.error_type = type or TYPES.get(status, "invalid_request_error")
        self.headers = dict(headers or {})


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of every answer that is no success, and the last event of a stream that fails."""

    error: ErrorBody


class Problem(msgspec.Struct, frozen=True):
    """What a refusal becomes on the wire."""

    status: int
    body: ErrorBody
    headers: dict[str, str]


TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
INTERNAL = "an error inside penstock ended this request; the log has it under this x-request-id."


def problem_of(error: BaseException) -> Problem:
    """Status, body and headers of an error. What is no PenstockError is our defect: 500, nothing leaked.

    Unless memory ran out for a moment: that is load.
    """
    if isinstance(error, MemoryError):
        error = OverloadedError("memory ran out while this was answered; ask again soon.", retry_after_s=5)
    if not isinstance(error, PenstockError):
        return Problem(500, ErrorBody(INTERNAL, "server_error", None, "internal_error"), {})
    status: int = error.http_status
    kind: str = error.error_type
    code: str = getattr(error, "code", "internal_error")
    param = error.param or None if isinstance(error, InvalidRequestError) else None
    headers = dict(getattr(error, "headers", {}))
    retry_after_s = getattr(error, "retry_after_s", None)
    if status in (429, 503):
        headers.setdefault("retry-after", str(max(1, round(retry_after_s or 1))))
        headers["x-should-retry"] = "true"
    message = INTERNAL if code == "internal_error" else " ".join(str(error).split())[:MAX_MESSAGE_CHARS]
    return Problem(status, ErrorBody(message, kind, param, code), headers)


def body_of(problem: Problem, *, request_id: str, is_anthropic: bool) -> bytes:
    """The JSON body: OpenAI's; for Anthropic's routes the same fields in Anthropic's envelope."""
    if not is_anthropic:
        return msgspec.json.encode(ErrorAnswer(problem.body))
    fallback = "invalid_request_error" if problem.status < 500 else "api_error"
    body = msgspec.structs.replace(problem.body, type=ANTHROPIC_TYPES.get(problem.status, fallback))
    return msgspec.json.encode({"type": "error", "error": body, "request_id": request_id})
