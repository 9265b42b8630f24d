"""How one chat uses tools and reasoning: what the template is told, what binds the answer, who parses it.

Called by chat and messages. One parser per choice, fed with pieces or with the whole: the same events. Calls
that must be made, and those of strict tools, are held to a grammar with the marks of the model's own format.
"""

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from penstock.api.conversation import ToolChoice
from penstock.api.engine_face import Reader, ReadPrompt
from penstock.errors import InvalidRequestError
from penstock.request import GrammarSpec
from penstock.text.grammar import json_schema_spec
from penstock.text.output_events import OutputEvent, ReasoningDelta, ToolCallStart
from penstock.text.output_format import OutputFormat, infer_format
from penstock.text.reply_grammar import Reply, Thinking, Tool, thinking_after
from penstock.text.tokenizer import Tokenizer
from penstock.text.tool_calls import OutputParser

ID_LETTERS = string.ascii_letters + string.digits
ID_CHARS = 9  # what Mistral's templates insist on; others take any
IN_WORDS = (
    "You may call these functions. To call one, write, for each call, a JSON object on a line of its own "
    'between <tool_call> and </tool_call>: {"name": ..., "arguments": {...}}\n'
)
inferred = lru_cache(maxsize=4)(infer_format)


@dataclass(frozen=True, slots=True)
class Tooling:
    form: OutputFormat
    tools: Sequence[Mapping[str, Any]]  # Any: JSON schemas
    choice: ToolChoice
    is_parallel: bool
    shows_reasoning: bool
    schemas_at: str = "tools[{}].function.parameters"  # what the user calls a tool's schema
    thinking: Thinking = "no"  # whether reasoning may come first; "opened": the prompt ends within it

    @classmethod
    def make(
        cls,
        source: str,
        tools: Sequence[Mapping[str, Any]],  # Any: JSON schemas
        choice: ToolChoice,
        *,
        is_parallel: bool = True,
        shows_reasoning: bool = True,
        schemas_at: str = schemas_at,
    ) -> "Tooling":
        return cls(inferred(source), tools, choice, is_parallel, shows_reasoning, schemas_at)

    @property
    def names(self) -> list[str]:
        """Of the tools that may be called."""
        if self.choice.mode == "none":
            return []
        return [tool["function"]["name"] for tool in self.tools if self._may_call(tool)]

    def _may_call(self, tool: Mapping[str, Any]) -> bool:  # Any: JSON schema
        return self.choice.name in (None, tool["function"]["name"])

    @property
    def must_call(self) -> bool:
        return self.choice.mode == "required"

    def check(self, *, has_shape: bool) -> None:
        """InvalidRequestError: a call must be made and the answer must be of a shape."""
        if self.must_call and has_shape:
            raise InvalidRequestError(
                "tool_choice asks for a call and response_format for something else; give one of them.",
                param="tool_choice",
            )

    def grammar(self, shape: GrammarSpec | None, special_ids: Mapping[int, str]) -> GrammarSpec | None:
        """What holds the answer to its marks and schemas, or None: nothing but `shape` does.

        Slow for long schemas. For an answer to a prompt: see `after`.
        """
        is_strict = any(self._is_strict(tool) for tool in self.tools)
        has_calls = bool(self.names) and (self.must_call or is_strict or shape is not None)
        may_think = self.thinking != "no" or self.form.style == "harmony"
        if not has_calls and not (shape is not None and may_think):
            return None
        tools = [
            Tool(tool["function"]["name"], self._schema(number, tool))
            for number, tool in enumerate(self.tools)
            if self.names and self._may_call(tool)
        ]
        reply = Reply(
            form=self.form,
            tools=tools,
            must_call=self.must_call,
            is_parallel=self.is_parallel and self.choice.name is None,
            answer=shape,
            thinking=self.thinking,
        )
        return reply.grammar(special_ids)

    def _is_strict(self, tool: Mapping[str, Any]) -> bool:  # Any: JSON schema
        return tool["function"].get("strict") is True and self._may_call(tool)

    def _schema(self, number: int, tool: Mapping[str, Any]) -> str:  # Any: JSON schema
        """What its arguments are held to: without strict, and where no call must be made, any object."""
        schema = {"type": "object"}
        if self.must_call or self._is_strict(tool):
            schema |= tool["function"].get("parameters") or {}
        return json_schema_spec(schema, param=self.schemas_at.format(number)).text

    def sampling(self, tokenizer: Tokenizer) -> dict[str, bool]:
        """Marks that are special tokens must be decoded, or no parser sees them."""
        marks = [self.form.think_begin, self.form.think_end]
        if self.names:
            marks += [self.form.call_begin, self.form.call_end, self.form.arguments_mark]
        if self.form.style == "harmony":
            marks.append(self.form.call_begin)  # every answer is written in channels, with tools or without
        is_needed = any(mark and mark in tokenizer.special_tokens for mark in marks)
        return {"skip_special_tokens": False} if is_needed else {}

    def read(
        self,
        reader: Reader,
        messages: list[dict[str, Any]],  # Any: foreign JSON
        options: Mapping[str, Any],  # Any: what the template's author named
    ) -> ReadPrompt:
        """The prompt. A template that knows no tools is told of them in words."""
        if not self.tools or self.choice.mode == "none":
            return reader.read_conversation(messages, **options)
        if self.form.renders_tools:
            return reader.read_conversation(messages, tools=list(self.tools), **options)
        functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self.tools)
        words = IN_WORDS + functions
        first, rest = messages[0], [_in_words(message) for message in messages[1:]]
        if first["role"] == "system":
            return reader.read_conversation(
                [{**first, "content": f"{first['content']}\n\n{words}"}, *rest], **options
            )
        return reader.read_conversation(
            [{"role": "system", "content": words}, _in_words(first), *rest], **options
        )

    def after(self, prompt: str | None) -> "Tooling":
        """The same, for answers to this prompt."""
        return replace(self, thinking=thinking_after(self.form, prompt or ""))

    def parser(self) -> "AnswerParser":
        is_thinking = self.thinking == "opened"
        return AnswerParser(OutputParser(self.form, self.names, is_thinking=is_thinking), self)

    @property
    def is_plain(self) -> bool:
        """Whether an answer is its text: nothing to look for."""
        return not self.names and not self.form.think_begin and self.form.style != "harmony"


def _in_words(message: dict[str, Any]) -> dict[str, Any]:  # Any: foreign JSON
    """A message with its calls written out, for a template that does not write them."""
    if not message.get("tool_calls"):
        return message
    calls = [
        f"<tool_call>\n{json.dumps(_call(call['function']), ensure_ascii=False)}\n</tool_call>"
        for call in message["tool_calls"]
    ]
    return {**message, "content": "\n".join(filter(None, [message["content"], *calls]))}


def _call(function: Mapping[str, Any]) -> dict[str, Any]:  # Any: foreign JSON
    return {"name": function["name"], "arguments": function["arguments"]}


class AnswerParser:
    """An OutputParser that drops what this request does not show: reasoning, a second call."""

    def __init__(self, parser: OutputParser, tooling: Tooling) -> None:
        self._parser = parser
        self._tooling = tooling
        self.num_calls = 0

    def feed(self, text: str) -> list[OutputEvent]:
        return self._shown(self._parser.feed(text)) if text else []

    def finish(self) -> list[OutputEvent]:
        return self._shown(self._parser.finish())

    def _shown(self, events: list[OutputEvent]) -> list[OutputEvent]:
        shown: list[OutputEvent] = []
        for event in events:
            if isinstance(event, ReasoningDelta) and not self._tooling.shows_reasoning:
                continue
            if isinstance(event, ToolCallStart):
                self.num_calls = event.index + 1
            if not self._tooling.is_parallel and getattr(event, "index", 0) > 0:
                continue
            shown.append(event)
        return shown


def call_id() -> str:
    return "".join(secrets.choice(ID_LETTERS) for _ in range(ID_CHARS))
