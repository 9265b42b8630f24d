"""/v1/embeddings: the pooled last hidden state of the served model, as numbers or as base64 of float32."""

import base64
import sys
from array import array
from typing import Any, Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.context import Context
from penstock.api.engine_face import Embedder
from penstock.api.prompt_list import OnePrompt, read_prompts
from penstock.api.requests import check_model, json_response, read_body
from penstock.api.sampling_fields import at_most, shorter
from penstock.api.shapes import Embedding, Embeddings, EmbeddingUsage
from penstock.errors import InvalidRequestError


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    model: str
    input: str | list[Any]  # Any: texts, token ids, or lists of token ids; read by prompt_list.py
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    pooling: Literal["last", "mean"] | None = None  # ours: which rows of the last hidden state


async def embeddings(request: Request) -> Response:
    """One vector per input, in their order."""
    context: Context = request.app.state.context
    body, num_bytes = await read_body(request, context, EmbeddingRequest)
    check_model(body.model, context)
    shorter("user", body.user or "", context.limits.user_chars)
    if body.dimensions is not None:
        raise InvalidRequestError(
            "dimensions is not supported here: the vector is the model's hidden state. Leave it out.",
            param="dimensions",
            code="unsupported_parameter",
        )
    inputs = read_prompts(body.input, "input")
    at_most("input", len(inputs), context.limits.prompts)
    engine = context.engine
    if not isinstance(engine, Embedder):
        raise InvalidRequestError(
            "this engine gives no hidden states; serve a model that has embeddings.",
            param="model",
            code="unsupported_parameter",
        )
    with engine.admit(num_bytes) as ticket:
        prompts = [await engine.offload(_ids, context, one) for one in inputs]
        vectors = await engine.embed(ticket, prompts, body.pooling or "last")
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
