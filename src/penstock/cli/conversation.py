"""What has been said in `penstock run`, and the commands that change it. Prints nothing, runs nothing."""

from typing import Any

HELP = (
    "/clear forgets the conversation, /system TEXT sets instructions, /exit leaves; Ctrl-C stops an answer."
)


class Conversation:
    """Turns of user and assistant, and the instructions before them.

    >>> talk = Conversation("Be brief.", is_chat=True)
    >>> talk.add("hi", "hello")
    >>> [m["role"] for m in talk.prompt("and you?")]
    ['system', 'user', 'assistant', 'user']
    """

    def __init__(self, system: str | None, *, is_chat: bool) -> None:
        self.system = system
        self.is_chat = is_chat
        self.is_over = False
        self._turns: list[dict[str, str]] = []

    def prompt(self, text: str) -> Any:  # Any: messages, or the text itself where there are no roles
        """What the model is asked when the user says `text`."""
        if not self.is_chat:
            return text
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self._turns, {"role": "user", "content": text}]

    def add(self, text: str, answer: str) -> None:
        """Keep a turn; one without an answer (refused, or stopped before its first word) is none."""
        if answer:
            self._turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def command(self, text: str) -> str | None:
        """Do what a /command says and return the reply; None where `text` is no command."""
        word, _, rest = text.strip().partition(" ")
        if word in ("/exit", "/quit", "/bye"):
            self.is_over = True
            return ""
        if word == "/help":
            return HELP
        if word == "/clear":
            self._turns.clear()
            return "the conversation is forgotten."
        if word == "/system":
            self.system = rest.strip() or None
            return "the instructions are set." if self.system else "there are no instructions now."
        if word.startswith("/") and not rest and word[1:].isalpha():
            return f"there is no command {word}. {HELP}"
        return None
