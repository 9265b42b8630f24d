"""The list of all routes: path, methods, endpoint, and the types that go in and out.

app.py makes doors of it and openapi.py a description, so that the two cannot differ. There is no other list.
"""

from dataclasses import dataclass
from typing import Any

from penstock.api import admin, page_routes
from penstock.api.chat import ChatRequest, chat_completions
from penstock.api.completions import CompletionRequest, completions
from penstock.api.door import Answerer
from penstock.api.embeddings import EmbeddingRequest, embeddings
from penstock.api.message_shapes import InputTokens, MessageAnswer, MessageEvent
from penstock.api.messages import Conversation, MessagesRequest, count_tokens, messages
from penstock.api.openapi import openapi
from penstock.api.shapes import (
    ChatChunk,
    ChatCompletion,
    Embeddings,
    HealthAnswer,
    ModelCard,
    ModelList,
    PlanAnswer,
    ServerLoad,
    Status,
    Text,
    TextCompletion,
    Tokens,
    Version,
)
from penstock.api.token_routes import DetokenizeRequest, TokenizeRequest, detokenize, tokenize


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """`takes` and `gives` are msgspec types; `streams`: the type of one event. None: no JSON."""

    path: str
    method: str
    endpoint: Answerer
    takes: Any = None  # Any: a type
    gives: Any = None  # Any: a type
    streams: Any = None  # Any: a type
    is_open: bool = False
    is_anthropic: bool = False
    is_page: bool = False
    statuses: tuple[int, ...] = (200,)


ROUTES = (
    RouteSpec("/v1/completions", "POST", completions, CompletionRequest, TextCompletion, TextCompletion),
    RouteSpec("/v1/chat/completions", "POST", chat_completions, ChatRequest, ChatCompletion, ChatChunk),
    RouteSpec("/v1/embeddings", "POST", embeddings, EmbeddingRequest, Embeddings),
    RouteSpec(
        "/v1/messages", "POST", messages, MessagesRequest, MessageAnswer, MessageEvent, is_anthropic=True
    ),
    RouteSpec(
        "/v1/messages/count_tokens", "POST", count_tokens, Conversation, InputTokens, is_anthropic=True
    ),
    RouteSpec("/v1/models", "GET", admin.models, gives=ModelList),
    RouteSpec("/v1/models/{name:path}", "GET", admin.model, gives=ModelCard),
    RouteSpec("/v1/plan", "GET", admin.plan, gives=PlanAnswer),
    RouteSpec("/tokenize", "POST", tokenize, TokenizeRequest, Tokens),
    RouteSpec("/detokenize", "POST", detokenize, DetokenizeRequest, Text),
    RouteSpec("/version", "GET", admin.version, gives=Version),
    RouteSpec("/live", "GET", admin.live, gives=Status, is_open=True),
    RouteSpec("/ready", "GET", admin.ready, gives=Status, is_open=True, statuses=(200, 503)),
    RouteSpec("/startup", "GET", admin.startup, gives=Status, statuses=(200, 503)),
    RouteSpec("/health", "GET", admin.health, gives=HealthAnswer, statuses=(200, 503)),
    RouteSpec("/load", "GET", admin.load, gives=ServerLoad),
    RouteSpec("/metrics", "GET", admin.metrics),
    RouteSpec("/openapi.json", "GET", openapi),
    RouteSpec("/", "GET", page_routes.page, is_page=True),
    RouteSpec("/page.js", "GET", page_routes.script, is_page=True),
    RouteSpec("/page.css", "GET", page_routes.style, is_page=True),
)
