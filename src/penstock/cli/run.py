"""`penstock run MODEL`: complete a prompt, answer a message, or talk, in the terminal, streaming.

Ctrl-C stops the answer that is being written and keeps the conversation; at the prompt it leaves.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from penstock.cli.flags import add_engine_flags, engine_config
from penstock.cli.sampling_flags import add_sampling_flags, sampling_params
from penstock.errors import ConfigError, PenstockError

if TYPE_CHECKING:
    from penstock.engine.llm import LLM
    from penstock.request import RequestOutput, SamplingParams

HELP = (
    "/clear forgets the conversation, /system TEXT sets instructions, /exit leaves; Ctrl-C stops an answer."
)


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

    config = engine_config(options)
    loaded = load_model(options.model, config)
    llm = LLM.from_loaded(loaded)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    params = sampling_params(options, llm.default_params, max_tokens=None)
    can_chat = loaded.chat_template is not None
    if options.message is not None and not can_chat:
        raise ConfigError(f"{options.model} has no chat template; use --prompt for plain text.")
    if options.prompt is not None:
        text = _text(options.prompt)
        print(text, end="", flush=True)
        _answer(llm, text, params, options.stats)
        return 0
    if options.message is not None:
        _answer(llm, _messages([], options.system, _text(options.message)), params, options.stats)
        return 0
    return _talk(llm, options, params, is_chat=can_chat and not options.complete)


def _text(given: str) -> str:
    return sys.stdin.read() if given == "-" else given


def _messages(
    history: list[dict[str, Any]], system: str | None, text: str
) -> list[dict[str, Any]]:  # Any: JSON
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *history, {"role": "user", "content": text}]


def _answer(
    llm: "LLM", prompt: Any, params: "SamplingParams", with_stats: bool
) -> str:  # Any: text or messages
    """Print the answer as it comes and return it."""
    written: list[str] = []
    last: RequestOutput | None = None
    for last in llm.stream(prompt, params):
        piece = last.outputs[0].text
        written.append(piece)
        print(piece, end="", flush=True)
    print(flush=True)
    if with_stats and last is not None:
        print(_stats(last), file=sys.stderr)
    return "".join(written)


def _stats(output: "RequestOutput") -> str:
    metrics = output.metrics
    count = len(metrics.inter_token_s) + 1
    rate = len(metrics.inter_token_s) / sum(metrics.inter_token_s) if metrics.inter_token_s else 0.0
    ttft_ms = 1000 * (metrics.ttft_s or 0.0)
    return (
        f"[{len(output.prompt_token_ids)} prompt tokens ({output.num_cached_tokens} cached), {count} answer tokens, "
        f"first after {ttft_ms:.0f} ms, then {rate:.1f} tokens/s; seed {output.seed}, {output.system_fingerprint}]"
    )


def _talk(llm: "LLM", options: argparse.Namespace, params: "SamplingParams", *, is_chat: bool) -> int:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        _use_readline()
        kind = "chat" if is_chat else "completions"
        print(f"{options.model}: {kind}. {HELP}")
    history: list[dict[str, Any]] = []  # Any: JSON
    system = options.system
    while True:
        try:
            text = input("> " if is_terminal else "")
        except EOFError:
            if is_terminal:
                print()
            return 0
        command, _, rest = text.strip().partition(" ")
        if command in ("/exit", "/quit"):
            return 0
        if command == "/help":
            print(HELP)
        elif command == "/clear":
            history.clear()
        elif command == "/system":
            system = rest or None
        elif command.startswith("/") and " " not in text and is_terminal:
            print(f"no command {command}. {HELP}")
        elif text.strip():
            try:
                prompt = _messages(history, system, text) if is_chat else text
                answer = _answer(llm, prompt, params, options.stats)
            except PenstockError as error:
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            except KeyboardInterrupt:
                print(" [stopped]")
                continue
            history += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def _use_readline() -> None:
    """Line editing and history within this conversation, where Python was built with it."""
    try:
        import readline
    except ImportError:
        return
    readline.set_history_length(1000)
