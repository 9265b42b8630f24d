"""Conversations to prompts: the checkpoint's jinja template, in a sandbox with a budget.

Called by the engine's faces. A template is data from a stranger: it reads the messages and writes text, no
more. Attributes that begin with an underscore are out of reach, nothing can be changed, work and size are
bounded.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2

from penstock.errors import InvalidRequestError, ModelLoadError
from penstock.text.template_meter import (
    METER,
    Meter,
    TemplateLimitError,
    bound,
    price_format,
    weigh,
)
from penstock.text.template_sandbox import Sandbox

Message = Mapping[str, Any]  # Any: content is a string, a list of parts, or None
Clock = Callable[[], datetime.datetime]

MAX_ERROR_CHARS = 300


def _raise_exception(message: object) -> NoReturn:
    weigh(message)
    raise jinja2.TemplateError(str(message))


class ChatTemplate:
    """A compiled template: a function of the messages, and of `clock` where it asks for the date.

    `source` is the template's text, `specials` its bos_token, eos_token ... Raises ModelLoadError
    (bad_template) for a text that is no template, or one too large to compile.
    """

    def __init__(
        self, source: str, specials: Mapping[str, str], clock: Clock = datetime.datetime.now
    ) -> None:
        def strftime_now(format: str) -> str:
            price_format(format, ())
            return clock().strftime(format)

        try:
            self._template = _sandbox().from_string(
                source, globals={"raise_exception": _raise_exception, "strftime_now": strftime_now}
            )
        except Exception as error:  # the compiler and Python's own refuse in many ways
            raise ModelLoadError(
                "bad_template",
                f"chat template: {_line(error)}; mend it, or remove it to serve plain prompts.",
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
        """The prompt text. InvalidRequestError when the template refuses the messages or outgrows a limit."""
        values = {
            "documents": None, **self._specials, **kwargs, "messages": list(messages), "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }  # fmt: skip
        pieces: list[str] = []
        num_chars = 0
        token = METER.set(Meter())
        try:
            for piece in self._template.generate(values):
                pieces.append(piece)
                num_chars += len(piece)
                bound(num_chars)
        except TemplateLimitError as error:
            raise InvalidRequestError(
                f"the chat template was stopped ({error}); shorten the conversation or change the template.",
                param="messages", code="template_limit",
            ) from None  # fmt: skip
        except jinja2.exceptions.SecurityError as error:
            raise InvalidRequestError(
                f"the chat template reached for something unsafe ({_line(error)}); give another template.",
                param="messages",
            ) from None
        except Exception as error:  # a template can raise anything; all of it means that it gives no text
            raise InvalidRequestError(
                f"the chat template refuses these messages ({_line(error)}); give roles and fields it knows.",
                param="messages",
            ) from None
        finally:
            METER.reset(token)
        return "".join(pieces)


@lru_cache(maxsize=1)
def _sandbox() -> Sandbox:
    return Sandbox()


def _line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    text = str(error).strip()
    return text.splitlines()[0][:MAX_ERROR_CHARS] if text else type(error).__name__


def load_chat_template(
    folder: Path, config: Mapping[str, Any], *, for_tools: bool = False
) -> ChatTemplate | None:  # Any: foreign JSON
    """A checkpoint's template: chat_template.jinja, else tokenizer_config.json's; None when it has none."""
    source = _read(folder / "chat_template.jinja")
    if source is None:
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
    for key in config:
        value = config[key]
        value = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(value, str):
            specials[key] = value
    return ChatTemplate(source, specials)


def _read(path: Path) -> str | None:
    if not path.exists():
        return None
    if not path.is_file():
        raise ModelLoadError("bad_template", f"{path.name}: not a regular file; copy it into the folder.")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError("bad_template", f"{path.name}: cannot be read ({error}).") from None
