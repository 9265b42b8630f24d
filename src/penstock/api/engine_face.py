"""What this room needs of an engine. AsyncEngine is one; the tests hand in others."""

from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, TypeVar, TypeVarTuple

from penstock.engine.serving import Call, Health, Limits, ModelFacts, Receipt
from penstock.errors import PenstockError
from penstock.request import RequestOutput
from penstock.text.tokenizer import Tokenizer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ReadPrompt(Protocol):
    @property
    def text(self) -> str | None: ...
    @property
    def token_ids(self) -> Sequence[int]: ...


class Reader(Protocol):
    """Text or messages -> tokens. Slow for long prompts: called through `offload`."""

    @property
    def template_source(self) -> str | None: ...
    def read(self, prompt: str | Mapping[str, Any], *, add_special: bool = True) -> ReadPrompt: ...
    def read_conversation(
        self, messages: Sequence[Mapping[str, Any]], *, chat_template: str | None = None, **options: Any
    ) -> ReadPrompt: ...


class Metrics(Protocol):
    def render(self) -> str: ...


class Engine(Protocol):
    """`stream` gives what is new in an answer; leaving it aborts the call. `embed` gives a vector of length 1
    for each call. `wait_stopped` returns when the engine is gone for good, with why."""

    facts: ModelFacts
    limits: Limits
    tokenizer: Tokenizer

    @property
    def reader(self) -> Reader: ...
    @property
    def metrics(self) -> Metrics: ...
    def admit(self, num_bytes: int) -> AbstractContextManager[Any]: ...
    async def offload(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T: ...
    def stream(
        self, ticket: Any, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[RequestOutput]]: ...
    async def embed(self, tickets: Sequence[Any], calls: Sequence[Call]) -> "list[array[float]]": ...
    async def probe(self, timeout_s: float = 2.0) -> bool: ...
    def health(self) -> Health: ...
    async def drain(self, limit_s: float) -> None: ...
    async def stop(self) -> None: ...
    async def wait_stopped(self) -> PenstockError | None: ...
    def receipt(self, output: RequestOutput) -> Receipt: ...
