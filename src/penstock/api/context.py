"""What every route is handed: the engine, the configuration, the keys, the log and the counters."""

import time
import traceback
from dataclasses import dataclass, field

from starlette.types import Scope

from penstock.api.counters import Counters
from penstock.api.engine_face import Engine
from penstock.api.keys import Keys
from penstock.config import ServerConfig
from penstock.engine.serving import EngineState, Health, Limits
from penstock.errors import InvalidRequestError, ModelLoadingError
from penstock.event_log import EventLog


@dataclass(slots=True)
class Context:
    config: ServerConfig
    keys: Keys
    log: EventLog
    limits: Limits
    loaded: Engine | None = None  # None: the model is being loaded
    created: int = field(default_factory=lambda: int(time.time()))
    counters: Counters = field(default_factory=Counters)

    @property
    def engine(self) -> Engine:
        if self.loaded is None:
            raise ModelLoadingError("the model is being loaded; ask again in a moment.", retry_after_s=1)
        return self.loaded

    def health(self) -> Health:
        if self.loaded is not None:
            return self.loaded.health()
        return Health(
            state=EngineState.STARTING, ready=False, reasons=["the model is being loaded"],
            heartbeat_age_s=None, num_running=0, num_queued=0, queued_bytes=0, kv_usage=0.0,
        )  # fmt: skip

    @property
    def model_name(self) -> str:
        return self.config.model_name or self.engine.facts.name

    def chat_template(self, instead: str) -> str:
        """Its source. InvalidRequestError: there is none, and what to do `instead`."""
        source = self.engine.reader.template_source
        if source is None:
            raise InvalidRequestError(
                f"{self.model_name} has no chat template and knows no roles; {instead}.",
                param="messages",
                code="no_chat_template",
            )
        return source

    @staticmethod
    def now() -> int:
        return int(time.time())

    def note(self, route: str, scope: Scope, status: int, seconds: float) -> None:
        """Count an answer and log it: who, where, how it ended and how long; nothing of what was said."""
        self.counters.count(route, scope["method"], status, seconds)
        if not self.config.log_requests or route in UNLOGGED:
            return
        state, client = scope["state"], scope.get("client")
        self.log.write(
            "request",
            request_id=state.get("request_id", ""),
            client=client[0] if client else "",
            key=state.get("key_id", ""),
            method=scope["method"],
            route=route,
            path=scope["path"],
            status=status,
            ms=round(seconds * 1000, 1),
            **state.get("usage", {}),
        )

    def log_defect(self, error: BaseException, route: str, request_id: str) -> None:
        """Where one of our own mistakes happened. Not its message: it may hold what somebody said."""
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:]))
        self.log.write("defect", request_id=request_id, route=route, error=type(error).__name__, where=where)


UNLOGGED = frozenset({"/live", "/ready", "/startup", "/health", "/metrics"})
