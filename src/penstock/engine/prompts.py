"""A prompt in any of the shapes that users give it -> its token ids. Called by the engine's faces.

Refuses other shapes by name; whether the ids can be served is for admission to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import InvalidRequestError, ModelLoadError
from penstock.model.family import read_model
from penstock.text.chat_template import ChatTemplate, Message, load_chat_template
from penstock.text.tokenizer import MARK, Tokenizer

Prompt = str | Mapping[str, Any]  # Any: {"prompt": str} or {"prompt_token_ids": [...]}, and "cache_salt"
Conversation = Sequence[Message]
SAID_OPTIONS = {"tools", "documents"}  # what a template is given besides messages, and users write
KEYS = {"prompt", "prompt_token_ids", "cache_salt"}


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """`text` is None where only ids were given."""

    text: str | None
    token_ids: Sequence[int]
    cache_salt: str = ""


def load_reader(folder: Path) -> tuple[Tokenizer, "PromptReader", tuple[str, ...]]:
    """What reads prompts for the model in `folder`, and notes. A broken template takes chat away, no more."""
    tokenizer = Tokenizer.load(folder, read_model(folder).vocab_size)
    template, notes = load_template(folder, tokenizer)
    return tokenizer, PromptReader(tokenizer, template), notes


def load_template(folder: Path, tokenizer: Tokenizer) -> tuple[ChatTemplate | None, tuple[str, ...]]:
    """A broken template takes chat away, not the model."""
    try:
        return load_chat_template(folder, tokenizer.config), ()
    except ModelLoadError as error:
        if error.code != "bad_template":
            raise
        return None, (f"no chat with this model: {error}",)


class PromptReader:
    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template

    @property
    def template_source(self) -> str | None:
        """The chat template's text: what it mentions tells how this model writes."""
        return None if self._chat_template is None else self._chat_template.source

    def read(self, prompt: Prompt, *, add_special: bool = True) -> ReadPrompt:
        """Encode a text, with what the tokenizer adds to it; take ids as they are, a text beside for show."""
        if isinstance(prompt, str):
            return ReadPrompt(prompt, self._encode(prompt, add_special=add_special))
        if not isinstance(prompt, Mapping) or not {"prompt", "prompt_token_ids"} & set(prompt):
            raise InvalidRequestError(
                f"a prompt is {prompt!r:.80}; give a text, or a dict with 'prompt' or 'prompt_token_ids'.",
                param="prompt",
            )
        unknown = set(prompt) - KEYS
        if unknown:
            raise InvalidRequestError(
                f"a prompt has the unknown key {min(unknown)!r}; known are {', '.join(sorted(KEYS))}.",
                param="prompt",
            )
        text, ids, salt = prompt.get("prompt"), prompt.get("prompt_token_ids"), prompt.get("cache_salt", "")
        for key, value, kind in (("prompt", text, str), ("prompt_token_ids", ids, Sequence)):
            if value is not None and not isinstance(value, kind):
                raise InvalidRequestError(
                    f"{key} is {type(value).__name__}; it must be a {kind.__name__.lower()}.", param=key
                )
        if not isinstance(salt, str):
            raise InvalidRequestError(
                f"cache_salt is {type(salt).__name__}; it must be a text.", param="cache_salt"
            )
        return ReadPrompt(text, self._encode(text or "") if ids is None else ids, salt)

    def _encode(self, text: str, *, add_special: bool = True) -> Sequence[int]:
        return self._tokenizer.encode(_valid(text), add_special=add_special)

    def read_conversation(
        self,
        messages: Conversation,
        *,
        chat_template: str | None = None,
        **options: Any,  # Any: what ChatTemplate.render takes
    ) -> ReadPrompt:
        """Render with the template given, or the checkpoint's, and encode."""
        template = self._chat_template
        if chat_template is not None:
            specials = {"bos_token": self._tokenizer.bos_token, "eos_token": self._tokenizer.eos_token}
            template = ChatTemplate(chat_template, {k: v for k, v in specials.items() if v is not None})
        if template is None:
            raise InvalidRequestError(
                "this model has no chat template and knows no roles; give chat_template or use generate().",
                param="messages",
            )
        if not messages or not all(isinstance(message, Mapping) for message in messages):
            raise InvalidRequestError(
                "messages are no list of {'role', 'content'} dicts, or an empty one; give at least one.",
                param="messages",
            )
        for name in SAID_OPTIONS & set(options):
            options[name] = self._marked(options[name])
        text = template.render([self._marked(message) for message in messages], **options)
        return ReadPrompt(text.replace(MARK, ""), self._tokenizer.encode_rendered(_valid(text)))

    def _marked(self, value: Any) -> Any:  # Any: messages and tools, JSON from strangers
        """Special tokens in what anybody but the template says stay text: contents, names, arguments."""
        if isinstance(value, str):
            return self._tokenizer.mark_specials(value)
        if isinstance(value, Mapping):
            return {self._marked(key): self._marked(child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(child) for child in value]
        return value


def _valid(text: str) -> str:
    """`text`, unless it holds what UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"the prompt holds half a surrogate pair at character {error.start:,}, which is no text; "
            "decode it with errors='replace' first.",
            param="prompt",
        ) from None
    return text
