"""Anthropic's turns -> the messages that chat templates know: text, calls, results of calls. For messages."""

from collections.abc import Sequence
from typing import Any

from penstock.errors import InvalidRequestError

Message = dict[str, Any]  # Any: foreign JSON


def read_system(system: str | list[Message] | None) -> list[Message]:
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    return [{"role": "system", "content": "\n".join(_text(b, f"system[{i}]") for i, b in enumerate(system))}]


def read_turns(turns: Sequence[Message]) -> list[Message]:
    """One turn may become several messages: each result of a call is one of its own."""
    made: list[Message] = []
    for number, turn in enumerate(turns):
        at = f"messages[{number}]"
        role, content = turn.get("role"), turn.get("content")
        if role not in ("user", "assistant"):
            raise _wrong(f"{at}.role", f"is {role!r:.40}", "give user or assistant")
        if isinstance(content, str):
            made.append({"role": role, "content": content})
        elif isinstance(content, list):
            made += _read_blocks(role, content, f"{at}.content")
        else:
            raise _wrong(f"{at}.content", "is neither a text nor a list of blocks", "give one")
    return made


def _read_blocks(role: str, blocks: Sequence[Any], at: str) -> list[Message]:
    texts: list[str] = []
    calls: list[Message] = []
    results: list[Message] = []
    for number, block in enumerate(blocks):
        here = f"{at}[{number}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use" and role == "assistant":
            calls.append(_call(block, here))
        elif kind == "tool_result" and role == "user":
            results.append(_result(block, here))
        elif kind in ("thinking", "redacted_thinking") and role == "assistant":
            continue  # what a model thought is no part of what it said
        else:
            texts.append(_text(block, here))
    if calls:
        return [{"role": role, "content": "\n".join(texts), "tool_calls": calls}]
    said = [{"role": role, "content": "\n".join(texts)}] if texts or not results else []
    return [*results, *said]


def _call(block: Message, at: str) -> Message:
    name, arguments = block.get("name"), block.get("input", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise _wrong(at, "has no name or no input object", "give {id, name, input}")
    return {
        "id": str(block.get("id", "")),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _result(block: Message, at: str) -> Message:
    call = block.get("tool_use_id")
    if not isinstance(call, str):
        raise _wrong(f"{at}.tool_use_id", "is missing", "add it", code="missing_required_parameter")
    content = block.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(_text(part, f"{at}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise _wrong(f"{at}.content", "is neither a text nor a list of blocks", "give one")
    return {"role": "tool", "tool_call_id": call, "content": content}


def _text(block: Any, at: str) -> str:  # Any: foreign JSON
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in ("image", "document", "search_result"):
        raise _wrong(
            at, f"is of type {kind}; this model reads text", "leave it out", code="unsupported_content"
        )
    if kind != "text" or not isinstance(block.get("text"), str):
        raise _wrong(at, "is no text block", "give {type: text, text}")
    text: str = block["text"]
    return text


def _wrong(param: str, what: str, do: str, *, code: str = "invalid_value") -> InvalidRequestError:
    return InvalidRequestError(f"{param} {what}; {do}.", param=param, code=code)
