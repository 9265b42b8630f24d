"""What operators and probes ask: models, version, health, metrics, the plan. None waits for the engine."""

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.context import Context
from penstock.api.problem import RefusalError
from penstock.api.requests import json_response
from penstock.api.shapes import HealthAnswer, ModelCard, ModelList, PlanAnswer, ServerLoad, Status, Version
from penstock.engine.serving import EngineState
from penstock.env import penstock_version


def context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def models(request: Request) -> Response:
    """The one model that is served, with what bounds and identifies it."""
    return json_response(ModelList(data=[_card(context_of(request))]))


async def model(request: Request) -> Response:
    """The same, asked for by name."""
    context = context_of(request)
    name = request.path_params["name"]
    if name not in (context.model_name, context.engine.facts.name):
        raise RefusalError(
            404, "model_not_found", f"no model {name[:80]!r} is served here; there is {context.model_name!r}."
        )
    return json_response(_card(context))


def _card(context: Context) -> ModelCard:
    facts = context.engine.facts
    return ModelCard(
        id=context.model_name,
        created=context.created,
        max_model_len=facts.max_context,
        exactness=facts.exactness,
        system_fingerprint=facts.fingerprint,
    )


async def version(request: Request) -> Response:
    """Of penstock."""
    return json_response(Version(penstock_version()))


async def plan(request: Request) -> Response:
    """What the planner decided for this model on this machine."""
    return json_response(PlanAnswer(dict(context_of(request).engine.facts.plan)))


async def live(request: Request) -> Response:
    """That this process turns; the engine is not asked."""
    return json_response(Status("live"))


async def ready(request: Request) -> Response:
    """Whether a request would be taken now; no details, since nobody needs a key for it."""
    is_ready = context_of(request).health().ready
    response = json_response(Status("ready" if is_ready else "not ready"))
    response.status_code = 200 if is_ready else 503
    return response


async def startup(request: Request) -> Response:
    """Whether the model has been loaded once."""
    is_starting = context_of(request).health().state is EngineState.STARTING
    response = json_response(Status("starting" if is_starting else "started"))
    response.status_code = 503 if is_starting else 200
    return response


async def health(request: Request) -> Response:
    """Ready or not, and why; with deep=1 after one real token (asked for at most once a second)."""
    context = context_of(request)
    deep = await context.engine.probe() if request.query_params.get("deep") == "1" else None
    now = context.health()
    is_well = now.ready and deep is not False
    reasons = [*now.reasons, *(["the engine gave no token in time"] if deep is False else [])]
    response = json_response(
        HealthAnswer(
            status=str(now.state),
            ready=is_well,
            reasons=reasons,
            heartbeat_age_s=now.heartbeat_age_s,
            num_running=now.num_running,
            num_queued=now.num_queued,
            queued_bytes=now.queued_bytes,
            kv_usage=now.kv_usage,
            deep=UNSET if deep is None else deep,
        )
    )
    response.status_code = 200 if is_well else 503
    return response


async def load(request: Request) -> Response:
    """How many requests run or wait; the shape is vLLM's."""
    now = context_of(request).health()
    return json_response(ServerLoad(now.num_running + now.num_queued))


async def metrics(request: Request) -> Response:
    """Prometheus' text format: the engine's own figures, vLLM's names for them, and the HTTP front's."""
    context = context_of(request)
    text = context.engine.metrics.render() + context.counters.render()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
