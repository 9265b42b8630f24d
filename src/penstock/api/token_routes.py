"""/tokenize and /detokenize: what the model reads of a text or a conversation, and back."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.context import Context
from penstock.api.conversation import read_messages, read_tool_choice, read_tools
from penstock.api.requests import check_model, json_response, read_body
from penstock.api.sampling_fields import TokenId
from penstock.api.shapes import Text, Tokens
from penstock.api.tooling import Tooling
from penstock.errors import InvalidRequestError


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None  # Any: see conversation.py
    tools: list[dict[str, Any]] | None = None  # Any: JSON schemas
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    model: str | None = None
    tokens: list[TokenId]


async def tokenize(request: Request) -> Response:
    """Ids of a text, or of a conversation as the chat template writes it."""
    context: Context = request.app.state.context
    body, num_bytes = await read_body(request, context, TokenizeRequest)
    if body.model is not None:
        check_model(body.model, context)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("give either prompt or messages.", param="prompt")
    with context.engine.admit(num_bytes):
        ids = await context.engine.offload(_ids, context, body)
    tokenizer = context.engine.tokenizer
    return json_response(
        Tokens(
            count=len(ids),
            max_model_len=context.engine.facts.max_context,
            tokens=ids,
            token_strs=[tokenizer.token_text(i) for i in ids] if body.return_token_strs else UNSET,
        )
    )


def _ids(context: Context, body: TokenizeRequest) -> list[int]:
    reader = context.engine.reader
    if body.prompt is not None:
        return list(reader.read(body.prompt, add_special=body.add_special_tokens is not False).token_ids)
    source = context.chat_template("give prompt")
    tools = read_tools(body.tools, context.limits)
    tooling = Tooling.make(source, tools, read_tool_choice(None, tools))
    messages = read_messages(body.messages or [], knows_developer="developer" in source)
    options = {"add_generation_prompt": body.add_generation_prompt is not False}
    return list(tooling.read(reader, messages, options).token_ids)


async def detokenize(request: Request) -> Response:
    """The text of some ids, special tokens included."""
    context: Context = request.app.state.context
    body, num_bytes = await read_body(request, context, DetokenizeRequest)
    if body.model is not None:
        check_model(body.model, context)
    vocab_size = context.engine.facts.vocab_size
    for token in body.tokens:
        if token >= vocab_size:
            raise InvalidRequestError(
                f"tokens has {token:,}; ids of this model are 0 to {vocab_size - 1:,}.", param="tokens"
            )
    with context.engine.admit(num_bytes):
        text = await context.engine.offload(_text, context, body.tokens)
    return json_response(Text(text))


def _text(context: Context, tokens: list[int]) -> str:
    return context.engine.tokenizer.decode(tokens, skip_special=False)
