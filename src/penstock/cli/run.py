"""`penstock run MODEL`: complete a prompt, answer a message, or talk, in the terminal, streaming.

Ctrl-C stops the answer that is being written and keeps the conversation; at the prompt it leaves. Piped
lines are one prompt or message each, and the first mistake ends the command.
"""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from penstock.cli.conversation import HELP, Conversation
from penstock.cli.flags import add_engine_flags, engine_config
from penstock.cli.sampling_flags import add_sampling_flags, sampling_params
from penstock.errors import ConfigError, InvalidRequestError, PenstockError

if TYPE_CHECKING:
    from penstock.engine.llm import LLM
    from penstock.request import RequestOutput, SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="a local folder, an embedded name (penstock models) or a Hugging Face id"
    )
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "-p", "--prompt", metavar="TEXT", help="continue TEXT and leave; - reads standard input"
    )
    text.add_argument(
        "-m",
        "--message",
        metavar="TEXT",
        help="answer TEXT as one chat message and leave; - reads standard input",
    )
    parser.add_argument(
        "--complete",
        action="store_true",
        help="talk in plain completions, also where there is a chat template",
    )
    parser.add_argument("--system", metavar="TEXT", help="instructions at the beginning of a chat")
    parser.add_argument(
        "--stats", action="store_true", help="after each answer: tokens, times, seed, fingerprint"
    )
    add_sampling_flags(parser)
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    from penstock.engine.build import load_model
    from penstock.engine.llm import LLM

    loaded = load_model(options.model, engine_config(options))
    llm = LLM.from_loaded(loaded)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    params = sampling_params(options, llm.default_params, max_tokens=None)
    can_chat = loaded.chat_template is not None
    if (options.message is not None or options.system is not None) and not can_chat:
        raise ConfigError(
            f"{options.model} has no chat template and knows no roles; use --prompt for plain text."
        )
    if options.prompt is not None:
        text = _checked(_given(options.prompt))
        _answer(llm, text, params, with_stats=options.stats, first=text)
        return 0
    system = None if options.system is None else _checked(options.system)
    conversation = Conversation(system, is_chat=can_chat and not options.complete)
    if options.message is not None:
        prompt = conversation.prompt(_checked(_given(options.message)))
        _answer(llm, prompt, params, with_stats=options.stats)
        return 0
    return _talk(llm, options, params, conversation)


def _given(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def _checked(text: str) -> str:
    """Bytes that are no UTF-8 arrive as halves of surrogate pairs (see main); no tokenizer reads them."""
    for char in text:
        if "\ud800" <= char <= "\udfff":
            raise InvalidRequestError(
                f"the text is not UTF-8 (byte 0x{ord(char) & 0xFF:02x}), so it cannot be read; convert it.",
                param="prompt",
            )
    return text


def _answer(
    llm: "LLM",
    prompt: Any,  # Any: text or messages
    params: "SamplingParams",
    *,
    with_stats: bool,
    first: str = "",
    written: list[str] | None = None,
) -> None:
    """Print `first`, then the answer as it comes. `written` collects its pieces, also of one cut short."""
    last: RequestOutput | None = None
    with contextlib.closing(llm.stream(prompt, params)) as pieces:  # type: ignore[type-var]  # a generator
        print(first, end="", flush=True)
        for last in pieces:
            for output in last.outputs:
                if written is not None:
                    written.append(output.text)
                print(output.text, end="", flush=True)
    print(flush=True)
    if with_stats and last is not None:
        print(_stats(last), file=sys.stderr)


def _stats(output: "RequestOutput") -> str:
    metrics = output.metrics
    num_gaps = len(metrics.inter_token_s)
    rate = num_gaps / sum(metrics.inter_token_s) if num_gaps else 0.0
    ttft_ms = 1000 * (metrics.ttft_s or 0.0)
    return (
        f"[{len(output.prompt_token_ids)} prompt tokens ({output.num_cached_tokens} cached), "
        f"{num_gaps + 1} answer tokens, first after {ttft_ms:.0f} ms, then {rate:.1f} tokens/s; "
        f"seed {output.seed}, {output.system_fingerprint}]"
    )


def _talk(
    llm: "LLM", options: argparse.Namespace, params: "SamplingParams", conversation: Conversation
) -> int:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        _use_readline()
        print(f"{options.model}: {'chat' if conversation.is_chat else 'completions'}. {HELP}")
    while True:
        try:
            text = input("> " if is_terminal else "")
        except EOFError:
            if is_terminal:
                print()
            return 0
        try:
            reply = conversation.command(text)
            if conversation.is_over:
                return 0
            if reply is None and text.strip():
                _turn(llm, _checked(text), params, conversation, with_stats=options.stats)
            elif reply:
                print(reply)
        except PenstockError as error:
            if not is_terminal:
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print(" [stopped]")


def _turn(
    llm: "LLM", text: str, params: "SamplingParams", conversation: Conversation, *, with_stats: bool
) -> None:
    """One answer. What was written of it belongs to the conversation, also when Ctrl-C stopped it."""
    written: list[str] = []
    try:
        _answer(llm, conversation.prompt(text), params, with_stats=with_stats, written=written)
    finally:
        conversation.add(text, "".join(written))


def _use_readline() -> None:
    """Line editing and recall within this conversation, where Python was built with it; nothing is kept."""
    with contextlib.suppress(ImportError):
        import readline

        readline.set_history_length(1000)
