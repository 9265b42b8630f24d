"""What an answer is made of, piece by piece: the events of `tool_calls.OutputParser`.

Plain structs, read by whoever answers chats. Pieces of one kind that follow each other belong together.
"""

import msgspec


class ContentDelta(msgspec.Struct, frozen=True):
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    text: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """The call number `index`, from 0, of the tool `name`."""

    index: int
    name: str


class ToolArgumentsDelta(msgspec.Struct, frozen=True):
    """More of the arguments' JSON text, as the model wrote it."""

    index: int
    text: str


class ToolCallEnd(msgspec.Struct, frozen=True):
    """`is_complete`: the arguments are a JSON object. If not, what followed them came as content."""

    index: int
    is_complete: bool


OutputEvent = ContentDelta | ReasoningDelta | ToolCallStart | ToolArgumentsDelta | ToolCallEnd
