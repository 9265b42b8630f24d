"""Conversations to prompts: the checkpoint's jinja template, in a sandbox with fuel.

A template is data from a stranger: it reads the messages and writes text, no more. Attributes that begin
with an underscore are out of reach, nothing can be changed, and size, work and time are bounded.
"""

import datetime
import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from penstock.errors import InvalidRequestError, ModelLoadError

MAX_OUTPUT_CHARS = 1 << 20
MAX_LINES = 1_000_000  # lines of compiled template run

Message = Mapping[str, Any]  # Any: content is a string, a list of parts, or None


class TemplateLimitError(Exception):
    """A template outgrew its fuel."""


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks the assistant's tokens for training; here, plain content."""

    tags = {"generation"}  # noqa: RUF012 jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 1


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses single operations whose result would be out of proportion; lines are counted by `_Fuel`."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # Any: template values
        if operator == "*" and (
            isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple)
        ):
            times = right if isinstance(right, int) else left
            _bound(_size(left if times is right else right) * (times if isinstance(times, int) else 1))
        elif operator == "**":
            _bound(abs(right) * 64 if isinstance(right, int) else 0)
        elif operator == "%" and isinstance(left, str):
            _bound_format(left)
        elif operator == "+" and isinstance(left, str | list):
            _bound(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # Any: template values
        if isinstance(obj, types.BuiltinMethodType) and isinstance(obj.__self__, str):
            _bound_method(obj.__self__, obj.__name__, args)
        return super().call(context, obj, *args, **kwargs)


def _bound(size: int) -> None:
    if size > MAX_OUTPUT_CHARS:
        raise TemplateLimitError(f"a value of {size} characters")


def _bound_format(text: str) -> None:
    digits = 0
    for character in text:
        digits = digits + 1 if character.isdigit() else 0
        if digits > 5:
            raise TemplateLimitError("a format width of six digits")


def _bound_method(text: str, method: str, args: Sequence[Any]) -> None:  # Any: template values
    if method in ("ljust", "rjust", "center", "zfill", "expandtabs"):
        _bound(
            max((a for a in args if isinstance(a, int)), default=0)
            * (len(text) if method == "expandtabs" else 1)
        )
    elif method == "replace" and len(args) >= 2:
        _bound(len(text) + (text.count(str(args[0])) + 1) * len(str(args[1])))
    elif method == "join" and args and isinstance(args[0], Sequence):
        _bound(sum(map(_size, args[0])) + len(text) * len(args[0]))
    elif method == "format":
        _bound_format(text)


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:  # Any: jinja filters take anything
    """A filter whose arguments and result are bounded."""

    def filtered(*args: Any, **kwargs: Any) -> Any:
        for number in (*args, *kwargs.values()):
            if isinstance(number, int) and number > MAX_OUTPUT_CHARS:
                raise TemplateLimitError("a filter argument out of proportion")
        result = function(*args, **kwargs)
        if isinstance(result, str):
            _bound(len(result))
        return result

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, mark):
            setattr(filtered, mark, getattr(function, mark))
    return filtered


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:  # Any: template values
    text = str(text)
    _bound_method(text, "replace", (old, new))
    return text.replace(old, new) if count is None else text.replace(old, new, count)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,  # Any: template values
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    _bound_format(format)
    return datetime.datetime.now().strftime(format)  # noqa: DTZ005 templates ask for the local date


class _Fuel:
    """Counts the lines a template runs, by the interpreter's own trace, and stops it at the limit."""

    def __init__(self) -> None:
        self._left = MAX_LINES

    def __enter__(self) -> "_Fuel":
        self._saved = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._saved)

    def _trace(
        self, frame: types.FrameType, event: str, arg: object
    ) -> Any:  # Any: the interpreter's protocol
        if event == "line":
            self._left -= 1
            if self._left < 0:
                raise TemplateLimitError(f"more than {MAX_LINES:,} lines run")
        if frame.f_code.co_filename.startswith("<template"):
            return self._trace
        return None


class ChatTemplate:
    """A compiled template. `render` is a function of the messages (and of the date, where the template asks)."""

    def __init__(self, source: str, specials: Mapping[str, str]) -> None:
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters |= {name: _checked(function) for name, function in environment.filters.items()}
        environment.filters["tojson"] = _tojson
        environment.filters["replace"] = _replace
        environment.globals = {
            name: environment.globals[name] for name in ("range", "dict", "namespace", "joiner", "cycler")
        }
        environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelLoadError(
                "bad_template", f"chat template: {error}; give another one or use plain prompts."
            ) from None
        self.source = source
        self._specials = dict(specials)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,  # Any: JSON schema
        add_generation_prompt: bool = True,
        **kwargs: Any,  # Any: what a template's author named
    ) -> str:
        """The prompt text. InvalidRequestError when the template refuses the messages or outgrows its limits."""
        values = {
            **self._specials, **kwargs, "messages": list(messages), "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }  # fmt: skip
        pieces: list[str] = []
        size = 0
        try:
            with _Fuel():
                for piece in self._template.generate(values):
                    pieces.append(piece)
                    size += len(piece)
                    if size > MAX_OUTPUT_CHARS:
                        raise TemplateLimitError(f"more than {MAX_OUTPUT_CHARS:,} characters written")
        except TemplateLimitError as error:
            raise InvalidRequestError(
                f"the chat template was stopped ({error}); shorten the conversation or give another template.",
                param="messages", code="template_limit",
            ) from None  # fmt: skip
        except SecurityError as error:
            raise InvalidRequestError(
                f"the chat template reached for something unsafe ({error}); give another template.",
                param="messages",
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError, RecursionError,
                ZeroDivisionError, OverflowError, MemoryError) as error:  # fmt: skip
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidRequestError(
                f"the chat template refuses these messages ({line}); see what roles and fields it knows.",
                param="messages",
            ) from None
        return "".join(pieces)


def load_chat_template(
    folder: Path, config: Mapping[str, Any], *, for_tools: bool = False
) -> ChatTemplate | None:  # Any: foreign JSON
    """The template of a checkpoint: chat_template.jinja, else tokenizer_config.json's; None when it has none."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            source: object = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError("bad_template", f"{path.name}: cannot be read ({error}).") from None
    else:
        source = config.get("chat_template")
    if isinstance(source, list):
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, Mapping)}
        source = named.get("tool_use") if for_tools and "tool_use" in named else named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ModelLoadError(
            "bad_template", "tokenizer_config.json: chat_template is neither text nor named texts."
        )
    specials = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(key)
        value = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            specials[key] = value
    return ChatTemplate(source, specials)
