"""The built-in page: one document, one script, one style sheet; nothing from anywhere else, by policy."""

from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "page"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def page(request: Request) -> Response:
    """Playground and dashboard."""
    return _file("page.html", "text/html")


async def script(request: Request) -> Response:
    """Its script."""
    return _file("page.js", "text/javascript")


async def style(request: Request) -> Response:
    """Its style."""
    return _file("page.css", "text/css")


def _file(name: str, kind: str) -> Response:
    return Response(_read(name), headers=HEADERS, media_type=kind)


@lru_cache(maxsize=8)
def _read(name: str) -> bytes:
    return (FOLDER / name).read_bytes()
