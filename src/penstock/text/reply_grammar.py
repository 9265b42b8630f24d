"""The grammar of a whole reply: reasoning, then calls in the marks of the model's own format, or an answer.

Called by whoever answers chats; the result is compiled like any other grammar. It follows the letters that
`tool_calls.OutputParser` follows: whatever that parser would take for a call of one of the tools is held to
that tool's schema, from its opening mark on, and what stands before the mark is free. Refuses by name what
could not be held: a grammar of the user's own beside calls, marks that this tokenizer cannot keep apart.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec
from penstock.text.call_styles import DEEPSEEK_CALL, DEEPSEEK_CALL_END, DEEPSEEK_SEP, FENCE
from penstock.text.grammar import JSON_SPACE, MAX_GRAMMAR_BYTES
from penstock.text.harmony import CHANNEL, CONSTRAIN, ENDS, MESSAGE, START, THOUGHTS
from penstock.text.lark_text import LarkText, literal
from penstock.text.output_format import OutputFormat
from penstock.text.tool_calls import thinks_at_once

Thinking = Literal["no", "may", "opened"]

SPACE = "[ \\t\\r\\n]"
GAP = f"(?:{JSON_SPACE})?"  # within a call, where JSON may have space
ANY_OBJECT = '{"type":"object"}'
CALL_KEYS = "id|type|arguments|parameters"  # a bare object that begins with one of these may become a call


def thinking_after(form: OutputFormat, prompt: str) -> Thinking:
    """Whether an answer to a rendered prompt may begin with reasoning; "opened": the template has begun it.

    >>> from penstock.text.output_format import infer_format
    >>> form = infer_format("<think></think>")
    >>> [thinking_after(form, prompt) for prompt in ("hi", "hi <think>\\n", "<think>\\n\\n</think>\\n\\n")]
    ['may', 'opened', 'no']
    """
    if not form.think_begin or prompt.rstrip().endswith(form.think_end):
        return "no"
    return "opened" if thinks_at_once(form, prompt) else "may"


class Tool(msgspec.Struct, frozen=True):
    """A function that may be called. `schema`: the JSON text of its arguments' schema; it says an object."""

    name: str
    schema: str = ANY_OBJECT


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What one reply may be.

    `must_call`: nothing but calls; else calls, or what matches `answer`, or, where that is None, any text
    with calls in it. `is_parallel`: more than one call. `thinking`: whether reasoning may come first, or has
    been opened by the prompt.
    """

    form: OutputFormat
    tools: Sequence[Tool] = ()
    must_call: bool = False
    is_parallel: bool = True
    answer: GrammarSpec | None = None
    thinking: Thinking = "no"

    def grammar(self, special_ids: Mapping[int, str]) -> GrammarSpec:
        """In Lark's syntax, for a tokenizer with these special tokens. Both errors name tools."""
        rules = LarkText(special_ids)
        writer = _Harmony(self, rules) if self.form.style == "harmony" else _Marked(self, rules)
        text = rules.text(writer.start())
        if len(text.encode()) > MAX_GRAMMAR_BYTES:
            raise GrammarLimitError(
                f"tools: their schemas have {len(text.encode()):,} bytes as one grammar; the limit is "
                f"{MAX_GRAMMAR_BYTES:,}. Give fewer or smaller ones.",
                param="tools",
            )
        return GrammarSpec("lark", text)


class _Writer:
    """What all formats share: arguments, and the answer that is no call."""

    def __init__(self, reply: Reply, rules: LarkText) -> None:
        self._reply = reply
        self._form = reply.form
        self._rules = rules
        self._is_single = not reply.is_parallel or reply.form.is_single
        self._arguments = [rules.json(tool.schema) for tool in reply.tools]

    def _answer(self) -> str:
        spec = self._reply.answer
        assert spec is not None, "there is an answer to hold"
        match spec.kind:
            case "json_object":
                return self._rules.json(ANY_OBJECT)
            case "json_schema":
                return self._rules.json(spec.text)
            case "regex":
                return self._rules.terminal(spec.text)
            case "choice":
                return f"({' | '.join(map(literal, json.loads(spec.text)))})"
        raise InvalidRequestError(
            "a grammar of your own cannot be held beside this model's tool calls or reasoning; use json, "
            "regex or choice, or leave the tools out.",
            param="structured_outputs.grammar",
            code="unsupported_parameter",
        )


class _Marked(_Writer):
    """Formats whose calls stand behind a mark, or are bare objects at the beginning."""

    def start(self) -> str:
        rules, form = self._rules, self._form
        gap = f"{rules.terminal(f'{SPACE}{{1,8}}')}?"
        thought = f"{rules.up_to(form.think_end)} {gap}" if form.think_begin else ""
        match self._reply.thinking:
            case "opened":
                return f"{thought} {self._body()}"
            case "may":
                opening = rules.opening(form.think_begin)
                return f"({opening} {thought})? {self._body()}"
        return self._body()

    def _body(self) -> str:
        if not self._reply.tools:
            return self._answer()
        is_bare = self._form.style == "bare_json"
        calls = self._group() if is_bare else self._marked_calls()
        if self._reply.must_call:
            return f"{self._rules.terminal(f'{SPACE}{{1,8}}')}? {calls}"
        if self._reply.answer is None:
            return self._bare_text() if is_bare else self._text()
        if is_bare:
            raise InvalidRequestError(
                "this model writes tool calls as bare JSON, which cannot be told from an answer that must be "
                "of a shape; set tool_choice to none or required.",
                param="tool_choice",
                code="unsupported_parameter",
            )
        return f"({calls} | {self._answer()})"

    def _not_first(self) -> str:
        """No text may begin as reasoning would: the parser would take calls in it for thoughts."""
        begin = self._form.think_begin
        return f"{SPACE}*{re.escape(begin)}" if begin else ""

    def _text(self) -> str:
        """Free text, with calls behind their mark."""
        rules, mark = self._rules, self._form.call_begin
        block = self._block()
        first = rules.up_to(mark, not_first=self._not_first())
        free = rules.free((mark,))
        more = "" if self._is_single else f"({rules.up_to(mark)} {block})*"
        return f"({first} {block} {more} {free}? | {rules.free((mark,), not_first=self._not_first())}?)"

    def _marked_calls(self) -> str:
        mark, block = self._rules.mark(self._form.call_begin), self._block()
        one = f"{mark} {block}"
        if self._is_single or self._form.style == "deepseek" or self._is_list:
            return one
        return f"{one} ({self._rules.terminal(f'{SPACE}{{1,4}}')}? {one})*"

    @property
    def _is_list(self) -> bool:
        return self._form.style == "mistral" and not self._form.arguments_mark

    def _block(self) -> str:
        """What stands behind the opening mark."""
        rules, form = self._rules, self._form
        gap = f"{rules.terminal(f'{SPACE}{{1,4}}')}?"
        if form.style == "deepseek":
            one = self._deepseek_call()
            many = one if self._is_single else f"{one} ({gap} {one})*"
            return f"{many} {gap} {rules.mark(form.call_end)}"
        if form.style == "mistral" and form.arguments_mark:
            return self._named(f"{self._call_id()} {rules.mark(form.arguments_mark)}")
        if form.style == "mistral":
            first, later = self._object(GAP + "\\[" + GAP), self._object(f"{GAP},{GAP}")
            more, end = "" if self._is_single else f"({later})*", rules.terminal(GAP + "]")
            return f"{first} {more} {end}"
        return f"{self._object(f'{SPACE}{{0,4}}')} {gap} {rules.mark(form.call_end)}"

    def _object(self, before: str) -> str:
        """{"name": ..., "arguments": {...}}: the head of each tool, then what its schema says.

        `before` is part of the head: apart, it would compete with text that begins alike.
        """
        key, end = self._form.arguments_key, self._rules.terminal(f"{GAP}\\}}")
        heads = [
            self._rules.terminal(
                f'{before}\\{{{GAP}"name"{GAP}:{GAP}"{re.escape(tool.name)}"{GAP},{GAP}"{key}"{GAP}:{GAP}'
            )
            for tool in self._reply.tools
        ]
        calls = " | ".join(f"{head} {given}" for head, given in zip(heads, self._arguments, strict=True))
        return f"({calls}) {end}"

    def _named(self, between: str) -> str:
        """The name, then the arguments alone."""
        calls = [
            f"{literal(tool.name)} {between} {given}"
            for tool, given in zip(self._reply.tools, self._arguments, strict=True)
        ]
        return f"({' | '.join(calls)})"

    def _call_id(self) -> str:
        mark = self._rules.mark("[CALL_ID]")
        return f"({mark} {self._rules.terminal('[A-Za-z0-9]{9}')})?"

    def _deepseek_call(self) -> str:
        rules, form = self._rules, self._form
        begin, sep, end = (rules.mark(mark) for mark in (DEEPSEEK_CALL, DEEPSEEK_SEP, DEEPSEEK_CALL_END))
        if not form.arguments_mark:
            return f"{begin} {self._named(sep)} {end}"
        opening, closing = literal(f"\n{form.arguments_mark}\n"), literal(f"\n{FENCE}")
        return f'{begin} "function" {sep} {self._named(opening)} {closing} {end}'

    # bare objects

    def _group(self) -> str:
        """Objects one after the other."""
        one = self._object(f"{SPACE}{{0,8}}")
        return one if self._is_single else f"{one} ({self._object(f'{SPACE}{{0,2}};?{SPACE}{{0,2}}')})*"

    def _bare_text(self) -> str:
        """An object that is a call, or text that does not begin as one; and calls behind the mark."""
        rules, mark = self._rules, self._form.call_begin
        names = "|".join(re.escape(tool.name) for tool in self._reply.tools)
        callish = f'\\{{{SPACE}*"(name"{SPACE}*:{SPACE}*"({names})|({CALL_KEYS}))"'
        thought = self._not_first()
        first = f"({SPACE}*{callish}|{thought})" if thought else f"{SPACE}*{callish}"
        later = rules.free((mark,), not_first=f"{SPACE}*;?{SPACE}*{callish}")
        text = f"{rules.free((mark,), not_first=first)}?"
        marked = f"({rules.mark(mark)} {self._group()} {later}?)"
        if self._is_single:
            return f"({self._group()} {later}? | {text} {marked}?)"
        return f"({self._group()} {later}? | {text}) {marked}*"


class _Harmony(_Writer):
    """gpt-oss: every message has a header; calls are messages to a function, and end the reply."""

    def start(self) -> str:
        rules, reply = self._rules, self._reply
        for mark in (CHANNEL, START, MESSAGE, CONSTRAIN, "<|end|>"):
            rules.need_special(mark)
        text = f"{rules.free((CHANNEL, START, MESSAGE, *ENDS))}?"
        channel, message = rules.mark(CHANNEL), rules.mark(MESSAGE)
        thought = (
            f"{channel} {rules.terminal(f'{THOUGHTS}|commentary')} {message} {text} "
            f'{rules.mark("<|end|>")} {rules.mark(START)} "assistant"'
        )
        ends = [self._call()] if reply.tools else []
        if reply.answer is not None:
            ends.append(f'{channel} "final" {message} {self._answer()}')
        elif not reply.must_call:
            ends.append(f"{channel} {rules.terminal(f'final|{THOUGHTS}|commentary')} {message} {text}")
        return f"({thought})* ({' | '.join(ends)})"

    def _call(self) -> str:
        rules = self._rules
        channel, message = rules.mark(CHANNEL), rules.mark(MESSAGE)
        kind = rules.terminal("( |json| json)")
        form = f'{kind}? ({rules.mark(CONSTRAIN)} "json")?'
        calls = []
        for tool, given in zip(self._reply.tools, self._arguments, strict=True):
            to = "to=functions\\." + re.escape(tool.name)
            usual = f"{channel} {rules.terminal(f'commentary {to} ?')} {form}"
            other = f'{rules.terminal(f" ?{to}")} {channel} "commentary" {form}'
            calls.append(f"({usual} | {other}) {message} {given}")
        return f"({' | '.join(calls)})"
