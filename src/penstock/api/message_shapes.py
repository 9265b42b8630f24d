"""Anthropic's answers as structs: what is encoded, and what /openapi.json is generated from."""

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from penstock.engine.serving import Receipt


class MessageUsage(Struct, frozen=True):
    """`input_tokens` are those that were computed; those found in the cache stand beside them."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class TextBlock(Struct, frozen=True, tag="text", tag_field="type"):
    text: str


class ThinkingBlock(Struct, frozen=True, tag="thinking", tag_field="type"):
    thinking: str
    signature: str = ""


class ToolUseBlock(Struct, frozen=True, tag="tool_use", tag_field="type"):
    id: str
    name: str
    input: dict[str, Any]  # Any: as the tool's schema says


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageAnswer(Struct, frozen=True, kw_only=True, tag="message", tag_field="type"):
    id: str
    role: str = "assistant"
    model: str
    content: list[Block]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage
    metrics: Receipt | UnsetType = UNSET


class InputTokens(Struct, frozen=True):
    input_tokens: int


class TextDelta(Struct, frozen=True, tag="text_delta", tag_field="type"):
    text: str


class ThinkingDelta(Struct, frozen=True, tag="thinking_delta", tag_field="type"):
    thinking: str


class InputJsonDelta(Struct, frozen=True, tag="input_json_delta", tag_field="type"):
    partial_json: str


class MessageStart(Struct, frozen=True, tag="message_start", tag_field="type"):
    message: MessageAnswer


class BlockStart(Struct, frozen=True, tag="content_block_start", tag_field="type"):
    index: int
    content_block: Block


class BlockDelta(Struct, frozen=True, tag="content_block_delta", tag_field="type"):
    index: int
    delta: TextDelta | ThinkingDelta | InputJsonDelta


class BlockStop(Struct, frozen=True, tag="content_block_stop", tag_field="type"):
    index: int


class StopDelta(Struct, frozen=True):
    stop_reason: str
    stop_sequence: str | None


class MessageDelta(Struct, frozen=True, kw_only=True, tag="message_delta", tag_field="type"):
    delta: StopDelta
    usage: MessageUsage
    metrics: Receipt | UnsetType = UNSET


class MessageStop(Struct, frozen=True, tag="message_stop", tag_field="type"):
    pass


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
