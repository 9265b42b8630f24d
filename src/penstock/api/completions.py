"""/v1/completions: continue a text, token ids, or lists of them; whole or as server-sent events."""

import secrets
from contextlib import ExitStack
from typing import Annotated, Any

from msgspec import Meta, structs
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.answering import collect
from penstock.api.completion_writer import CompletionWriter
from penstock.api.context import Context
from penstock.api.engine_face import ReadPrompt
from penstock.api.prompt_list import OnePrompt, read_prompts
from penstock.api.requests import check_model, json_response, read_body, timeout_of
from penstock.api.sampling_fields import (
    Count,
    SamplingFields,
    at_most,
    check_common,
    constraint,
    sampling_params,
)
from penstock.api.sse import EventStream, last_words
from penstock.engine.serving import Call
from penstock.errors import InvalidRequestError
from penstock.request import SamplingParams, StructuredOutputsParams
from penstock.text.fill_in import fill_in_prompt
from penstock.text.grammar import spec_of

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    prompt: str | list[Any]  # Any: texts, token ids, or lists of token ids; read by prompt_list.py
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    max_tokens: Count | None = None
    best_of: Annotated[int, Meta(ge=1, le=2**31)] | None = None


async def completions(request: Request) -> Response:
    """Continue each prompt. The answers of prompt i have the indices i * n to i * n + n - 1."""
    context: Context = request.app.state.context
    body, num_bytes = await read_body(request, context, CompletionRequest)
    check_model(body.model, context)
    _check(body, context)
    engine = context.engine
    prompts = read_prompts(body.prompt, "prompt")
    at_most("prompt", len(prompts), context.limits.prompts)
    at_most("n", len(prompts) * (body.n or 1), context.limits.prompts_times_n)
    asked = constraint(body)
    if asked is not None:  # refused here by its name, before anything is queued; not on the event loop
        await engine.offload(spec_of, asked)
    params = _params(body, engine.facts.defaults, asked)
    with ExitStack() as held:
        share = num_bytes // len(prompts)
        tickets = [held.enter_context(engine.admit(share)) for _ in prompts]
        read = [await engine.offload(_read, context, prompt, body) for prompt in prompts]
        answer_id = f"cmpl-{secrets.token_hex(12)}"
        calls = [
            Call(
                request_id=answer_id,
                prompt_tokens=one.token_ids,
                params=params,
                priority=body.priority or 0,
                cache_salt=body.cache_salt or "",
                timeout_s=timeout_of(request, body.timeout),
                key_id=request.state.key_id,
            )
            for one in read
        ]
        # who waits keeps its ids once, as the calls have them: thousands of long prompts may wait
        body = structs.replace(body, prompt="")
        writer = CompletionWriter(context, body, answer_id, read, request)
        del prompts, read
        if not body.stream:
            return json_response(writer.whole(await collect(engine, tickets, calls)))
        return await EventStream(writer.events(tickets, calls), context, last_words, held.pop_all()).open()


def _check(body: CompletionRequest, context: Context) -> None:
    check_common(body, context.limits)
    at_most("logprobs", body.logprobs or 0, context.limits.top_logprobs)
    n = body.n or 1
    if body.best_of is not None and body.best_of != n:
        code = "invalid_value" if body.best_of < n else "unsupported_parameter"
        raise InvalidRequestError(
            f"best_of is {body.best_of:,} and n is {n}; none is drawn to be thrown away. Leave it out.",
            param="best_of",
            code=code,
        )
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequestError(
            "max_tokens is 0, so that there is nothing to answer; ask for at least 1, or for echo.",
            param="max_tokens",
        )
    if body.echo and body.stream and body.logprobs is not None:
        raise InvalidRequestError(
            "logprobs of an echoed prompt are known when it is computed; do not stream, or leave out echo.",
            param="stream",
        )
    if body.echo and body.suffix is not None:
        raise InvalidRequestError("echo and suffix contradict each other; give one.", param="echo")


def _read(context: Context, prompt: OnePrompt, body: CompletionRequest) -> ReadPrompt:
    reader = context.engine.reader
    if isinstance(prompt, str) and body.suffix is not None:
        ids = fill_in_prompt(prompt, body.suffix, context.engine.tokenizer)
        return reader.read({"prompt_token_ids": ids})
    if isinstance(prompt, str):
        return reader.read(prompt, add_special=body.add_special_tokens is not False)
    if body.suffix is not None:
        raise InvalidRequestError("suffix needs a text as prompt; give one.", param="suffix")
    return reader.read({"prompt_token_ids": prompt})


def _params(
    body: CompletionRequest, defaults: SamplingParams, asked: StructuredOutputsParams | None
) -> SamplingParams:
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    more = {}
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        more["prompt_logprobs"] = body.logprobs
    return sampling_params(
        body, defaults, max_tokens=max_tokens, logprobs=body.logprobs, constraint=asked, **more
    )
