"""/v1/embeddings: the pooled last hidden state of the served model, as numbers or as base64 of float32."""

import base64
import math
import secrets
import sys
from array import array
from contextlib import ExitStack
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.context import Context
from penstock.api.prompt_list import OnePrompt, read_prompts
from penstock.api.requests import check_model, json_response, read_body, timeout_of
from penstock.api.sampling_fields import at_most, shorter
from penstock.api.shapes import Embedding, Embeddings, EmbeddingUsage
from penstock.engine.serving import Call, ModelFacts
from penstock.errors import InvalidRequestError
from penstock.request import SamplingParams

DRAWS_NOTHING: Final = SamplingParams()


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    model: str
    input: str | list[Any]  # Any: texts, token ids, or lists of token ids; read by prompt_list.py
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    user: str | None = None
    pooling: Literal["last", "mean", "cls"] | None = None  # ours: which rows of the last hidden state
    timeout: Annotated[float, Meta(gt=0, le=1e9)] | None = None


async def embeddings(request: Request) -> Response:
    """One vector per input, in their order; of length 1, unless the checkpoint says otherwise."""
    context: Context = request.app.state.context
    body, num_bytes = await read_body(request, context, EmbeddingRequest)
    check_model(body.model, context)
    shorter("user", body.user or "", context.limits.user_chars)
    engine = context.engine
    size = _size(body.dimensions, engine.facts)
    inputs = read_prompts(body.input, "input")
    at_most("input", len(inputs), context.limits.prompts)
    with ExitStack() as held:
        share = num_bytes // len(inputs)
        tickets = [held.enter_context(engine.admit(share)) for _ in inputs]
        prompts = [await engine.offload(_ids, context, one) for one in inputs]
        answer_id = f"embd-{secrets.token_hex(12)}"
        calls = [
            Call(
                request_id=answer_id,
                prompt_tokens=ids,
                params=DRAWS_NOTHING,
                timeout_s=timeout_of(request, body.timeout),
                key_id=request.state.key_id,
                pooling=body.pooling or engine.facts.pooling,
            )
            for ids in prompts
        ]
        vectors = await engine.embed(tickets, calls)
    if size < engine.facts.embedding_size:
        is_normalized = engine.facts.is_normalized
        vectors = [cut(vector, size) if is_normalized else vector[:size] for vector in vectors]
    as_text = body.encoding_format == "base64"
    num_tokens = sum(map(len, prompts))
    request.state.usage = {"prompt_tokens": num_tokens, "output_tokens": 0}
    return json_response(
        Embeddings(
            model=body.model,
            data=[
                Embedding(index=index, embedding=base64_of(vector) if as_text else list(vector))
                for index, vector in enumerate(vectors)
            ],
            usage=EmbeddingUsage(num_tokens, num_tokens),
        )
    )


def _size(asked: int | None, facts: ModelFacts) -> int:
    """How many numbers a vector has. Only a model that was trained for it may have its vectors cut."""
    whole = facts.embedding_size
    if asked is None or asked == whole or asked in facts.embedding_cuts:
        return whole if asked is None else asked
    if facts.embedding_cuts:
        raise InvalidRequestError(
            f"dimensions is {asked:,}; vectors of this model may have {_sizes(facts)}. Ask for one of these.",
            param="dimensions",
        )
    raise InvalidRequestError(
        f"dimensions is {asked:,}; this model's vectors have {whole:,} and were not trained to be cut. Leave "
        "it out.",
        param="dimensions",
        code="unsupported_parameter",
    )


def _sizes(facts: ModelFacts) -> str:
    sizes = [*facts.embedding_cuts, facts.embedding_size]
    return f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 16 else ", ".join(map(str, sizes))


def cut(vector: "array[float]", size: int) -> "array[float]":
    """The first `size` numbers, scaled to length 1 again.

    >>> list(cut(array("f", [3.0, 4.0, 12.0]), 2)) == list(array("f", [0.6, 0.8]))
    True
    """
    kept = vector[:size]
    length = math.sqrt(math.fsum(number * number for number in kept))
    return array("f", [number / length for number in kept]) if length > 0 else kept


def _ids(context: Context, prompt: OnePrompt) -> list[int]:
    reader = context.engine.reader
    ids = list(reader.read(prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}).token_ids)
    if not ids:
        raise InvalidRequestError("input has a text without tokens; give at least one.", param="input")
    return ids


def base64_of(vector: "array[float]") -> str:
    """Little-endian float32, as OpenAI's clients read them.

    >>> base64_of(array("f", [1.0, -2.0]))
    'AACAPwAAAMA='
    """
    words = array("f", vector)
    if sys.byteorder == "big":
        words.byteswap()
    return base64.b64encode(words.tobytes()).decode()
