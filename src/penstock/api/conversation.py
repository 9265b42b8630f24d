"""OpenAI's messages and tools, checked and brought into the shape that chat templates read.

Called by chat and, after its own translation, by messages. What a text model cannot read (an image, a sound)
is refused by name; fields of a message that nobody here knows are the template's to use.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock.engine.serving import Limits
from penstock.errors import InvalidRequestError

Json = Mapping[str, Any]  # Any: foreign JSON
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
MEDIA = frozenset(
    [
        "image_url",
        "input_image",
        "image",
        "input_audio",
        "audio",
        "video_url",
        "video",
        "file",
        "input_file",
        "document",
    ]
)
MAX_TOOL_DESCRIPTION_CHARS = 64 << 10


class ToolChoice(msgspec.Struct, frozen=True):
    """`mode`: none, auto or required; `name`: the one tool that must be called."""

    mode: str
    name: str | None = None


def read_messages(messages: Sequence[Any], *, knows_developer: bool) -> list[dict[str, Any]]:
    """Messages as templates expect them: content a text, arguments of calls an object."""
    return [
        _read_message(message, f"messages[{at}]", knows_developer=knows_developer)
        for at, message in enumerate(messages)
    ]


def _read_message(message: Any, at: str, *, knows_developer: bool) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise _wrong(at, "is no object", "give {role, content}", code="invalid_type")
    role = message.get("role")
    if role is None:
        raise _missing(f"{at}.role")
    if not isinstance(role, str):
        raise _wrong(
            f"{at}.role", "is no string", "give system, user, assistant or tool", code="invalid_type"
        )
    if not ROLE.fullmatch(role):
        raise _wrong(f"{at}.role", "is no name", "give system, user, assistant or tool")
    made = {key: value for key, value in message.items() if value is not None}
    if role == "developer" and not knows_developer:
        made["role"] = "system"
    calls = message.get("tool_calls")
    if calls is not None:
        made["tool_calls"] = _read_calls(calls, f"{at}.tool_calls")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise _missing(f"{at}.tool_call_id")
    content = message.get("content")
    if content is None:
        if role != "assistant" or not calls:
            raise _wrong(
                f"{at}.content", "is missing or null", "give a text", code="missing_required_parameter"
            )
        made["content"] = ""
    else:
        made["content"] = read_content(content, f"{at}.content")
    return made


def read_content(content: Any, at: str) -> str:  # Any: foreign JSON
    """A text, or the texts of a list of parts, one after the other, on lines of their own."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(at, "is neither a text nor a list of parts", "give one", code="invalid_type")
    return "\n".join(_read_part(part, f"{at}[{number}]") for number, part in enumerate(content))


def _read_part(part: Any, at: str) -> str:  # Any: foreign JSON
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise _wrong(at, "is no {type, ...}", "give {type: text, text}", code="invalid_type")
    if kind in MEDIA:
        raise _wrong(
            at, f"is of type {kind}; this model reads text", "leave it out", code="unsupported_content"
        )
    key = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}.get(kind)
    if key is None:
        raise _wrong(at, f"is of type {kind!r:.40}, which is not known", "give {type: text, text}")
    if not isinstance(part.get(key), str):
        raise _wrong(f"{at}.{key}", "is no text", "give one", code="invalid_type")
    text: str = part[key]
    return text


def _read_calls(calls: Any, at: str) -> list[dict[str, Any]]:  # Any: foreign JSON
    if not isinstance(calls, list):
        raise _wrong(at, "is no list", "give one", code="invalid_type")
    made = []
    for number, call in enumerate(calls):
        here = f"{at}[{number}].function"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _wrong(here, "has no name", "give {name, arguments}")
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, dict):
            raise _wrong(f"{here}.arguments", "is no JSON object", "give it as the model wrote it")
        made.append({**call, "type": "function", "function": {**function, "arguments": arguments}})
    return made


def read_tools(tools: Any, limits: Limits) -> list[dict[str, Any]]:  # Any: foreign JSON
    """Tools whose names and schemas a model can be told of. Each must be a function."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise _wrong("tools", "is no list", "give one", code="invalid_type")
    if len(tools) > limits.tools:
        raise _wrong(
            "tools", f"has {len(tools):,} entries; this server allows {limits.tools}", "send fewer",
            code="array_above_max_length",
        )  # fmt: skip
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        at = f"tools[{number}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise _wrong(at, "is not of type function", "give {type: function, function: {name, ...}}")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise _wrong(
                f"{at}.function", "is no object", "give {name, description, parameters}", code="invalid_type"
            )
        check_tool(function, at + ".function")
        if function["name"] in seen:
            raise _wrong(f"{at}.function.name", "stands twice", "give each tool a name of its own")
        seen.add(function["name"])
    return tools


def check_tool(function: Json, at: str) -> None:
    name = function.get("name")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise _wrong(f"{at}.name", "is no name", "use 1 to 64 letters, digits, '_' or '-'")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise _wrong(f"{at}.description", "is no string", "give one", code="invalid_type")
    if not isinstance(function.get("strict"), bool | None):
        raise _wrong(f"{at}.strict", "is neither true nor false", "give one", code="invalid_type")
    parameters = function.get("parameters")
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise _wrong(f"{at}.parameters", "is no JSON schema", "give an object", code="invalid_type")
    if parameters.get("type", "object") != "object":
        raise _wrong(f"{at}.parameters.type", "is not 'object'", "arguments are always one")


def read_tool_choice(choice: Any, tools: Sequence[Json]) -> ToolChoice:  # Any: foreign JSON
    """auto where there are tools and nothing is said; a named tool must be among them."""
    names = [tool["function"]["name"] for tool in tools]
    if choice is None:
        return ToolChoice("auto" if tools else "none")
    if choice in ("none", "auto", "required"):
        if choice == "required" and not tools:
            raise _wrong("tool_choice", "is required and there are no tools", "give tools")
        return ToolChoice(choice if tools else "none")
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        kind = "invalid_value" if isinstance(choice, str | dict) else "invalid_type"
        raise _wrong(
            "tool_choice",
            "is neither none, auto, required nor a named function",
            "give one of them",
            code=kind,
        )
    if name not in names:
        raise _wrong(
            "tool_choice", f"names {name!r:.70}, which is no tool of this request", "name one of them"
        )
    return ToolChoice("required", name)


def _wrong(param: str, what: str, do: str, *, code: str = "invalid_value") -> InvalidRequestError:
    return InvalidRequestError(f"{param} {what}; {do}.", param=param, code=code)


def _missing(param: str) -> InvalidRequestError:
    return _wrong(param, "is missing", "add it", code="missing_required_parameter")
