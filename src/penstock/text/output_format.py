"""How a model marks its reasoning and its tool calls, told from the chat template alone.

Called by whoever answers chats. A template that shows no such marks gives GENERIC: its tools are described to
the model in words, and it is asked for Hermes' marks.
"""

from typing import Literal

import msgspec

ToolStyle = Literal["tagged", "bare_json", "mistral", "deepseek", "harmony"]


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """One model family's habits.

    `style` says how a call is written: `tagged` has a JSON object {"name", `arguments_key`} between
    `call_begin` and `call_end`; `bare_json` is that object alone, at the beginning of the answer.
    `arguments_mark`: what stands before the arguments where they follow the name alone; "": the style's
    other way. `is_single`: the template refuses a turn with more than one call.
    `shows_specials`: the marks are special tokens, so that the text must be decoded with them
    (`skip_special_tokens=False`) for the parser. `renders_tools`: the template itself tells the model of
    the tools it has.
    """

    name: str
    style: ToolStyle = "tagged"
    call_begin: str = "<tool_call>"
    call_end: str = "</tool_call>"
    arguments_key: str = "arguments"
    arguments_mark: str = ""
    think_begin: str = ""  # "": no reasoning
    think_end: str = ""
    shows_specials: bool = False
    renders_tools: bool = True
    is_single: bool = False


HERMES = OutputFormat(name="hermes")
GENERIC = OutputFormat(name="generic", renders_tools=False)
PENSTOCK = OutputFormat(
    name="penstock", call_begin="<|tool_call|>", call_end="<|tool_call_end|>", shows_specials=True
)
LLAMA3 = OutputFormat(
    name="llama3",
    style="bare_json",
    call_begin="<|python_tag|>",
    call_end="",
    arguments_key="parameters",
    shows_specials=True,
)
MISTRAL = OutputFormat(
    name="mistral", style="mistral", call_begin="[TOOL_CALLS]", call_end="", shows_specials=True
)
DEEPSEEK = OutputFormat(
    name="deepseek",
    style="deepseek",
    call_begin="<｜tool▁calls▁begin｜>",
    call_end="<｜tool▁calls▁end｜>",
    shows_specials=True,
)
HARMONY = OutputFormat(
    name="harmony", style="harmony", call_begin="<|channel|>", call_end="<|call|>", shows_specials=True
)

# What tells how a family's template spells arguments, by style.
_ARGUMENT_MARKS = {"mistral": "[ARGS]", "deepseek": "```json"}
_SINGLE = "only supports single tool"  # what Llama's templates raise for a turn with two calls
# What only one family's templates say, in the order in which it is looked for.
_TOOLS = (
    ("<|channel|>", HARMONY),
    ("tool▁call", DEEPSEEK),
    ("<|tool_call|>", PENSTOCK),
    ("[TOOL_CALLS]", MISTRAL),
    ("<tool_call>", HERMES),
    ("<|python_tag|>", LLAMA3),
    ('"parameters": ', LLAMA3),
)
_THOUGHTS = (
    ("<think>", "</think>"),
    ("<|think|>", "<|think_end|>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
)


def infer_format(template_source: str) -> OutputFormat:
    """The format that a chat template's marks give away.

    >>> infer_format("... <tool_call> ... <think> ...").name, infer_format("{{ messages }}").name
    ('hermes', 'generic')
    """
    found = next((family for mark, family in _TOOLS if mark in template_source), GENERIC)
    if found is HARMONY:
        return found
    mark = _ARGUMENT_MARKS.get(found.style, "")
    found = msgspec.structs.replace(
        found,
        arguments_mark=mark if mark in template_source else "",
        is_single=_SINGLE in template_source,
    )
    for begin, end in _THOUGHTS:
        if end in template_source:
            return msgspec.structs.replace(found, think_begin=begin, think_end=end)
    return found
