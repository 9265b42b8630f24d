"""Flags that vLLM users type from habit and that have no field here: said in one line each, called by main.

What is harmless to leave out is noted and dropped; what would change the result is refused.
"""

import sys
from collections.abc import Sequence

NOT_NEEDED = {  # flag -> (how many values it takes, why)
    "--enforce-eager": (0, "nothing is compiled or captured at run time"),
    "--enable-chunked-prefill": (0, "long prompts always go in chunks"),
    "--no-enable-chunked-prefill": (0, "chunks change no bit of an answer"),
    "--trust-remote-code": (0, "code from a checkpoint is never run"),
    "--disable-log-stats": (0, "nothing is logged unless it is asked for"),
    "--disable-log-requests": (0, "no prompt is logged; --no-log-requests leaves the line out"),
    "--enable-auto-tool-choice": (0, "tools may be called wherever the chat template knows a way"),
    "--tool-call-parser": (1, "the format of calls is told from the chat template"),
    "--reasoning-parser": (1, "the marks of reasoning are told from the chat template"),
    "--disable-uvicorn-access-log": (0, "--no-log-requests leaves the line per request out"),
    "--generation-config": (1, "the checkpoint's own is read"),
    "--gpu-memory-utilization": (1, "there is no GPU to share; --memory-bytes bounds the keys and values"),
    "--swap-space": (1, "a preempted request is computed again, so nothing is swapped"),
}
NOT_THERE = {  # flag -> why it is refused
    "--tensor-parallel-size": "a model runs in one process so far",
    "-tp": "a model runs in one process so far",
    "--pipeline-parallel-size": "a model runs in one process so far",
    "--data-parallel-size": "a model runs in one process so far",
    "--enable-lora": "adapters cannot be loaded so far",
    "--lora-modules": "adapters cannot be loaded so far",
    "--speculative-config": "there is no speculation so far",
    "--api-key": "every user of this machine can read it there; set PENSTOCK_API_KEY or give --api-key-file",
    "--root-path": "there is no prefix of routes; a proxy can take it off",
    "--allowed-local-media-path": "this engine reads text",
    "--ssl-keyfile": "there is no TLS here so far; put a proxy in front",
    "--ssl-certfile": "there is no TLS here so far; put a proxy in front",
    "--uds": "it listens on an address and a port",
    "--tokenizer": "a model is served with its own tokenizer",
    "--load-format": "safetensors is the one format that can be read so far",
    "--chat-template": "LLM.chat(chat_template=...) takes one; the command line uses the model's own",
}


def without_not_needed(arguments: Sequence[str]) -> list[str]:
    """The arguments that are left; a note on standard error for each flag that was dropped.

    >>> without_not_needed(["run", "m", "--top-k", "5"])
    ['run', 'm', '--top-k', '5']
    """
    left: list[str] = []
    num_skipped = 0
    for index, word in enumerate(arguments):
        if num_skipped:
            num_skipped -= 1
            continue
        if word == "--":
            return left + list(arguments[index:])
        flag, has_value, _ = word.partition("=")
        if flag not in NOT_NEEDED:
            left.append(word)
            continue
        num_values, why = NOT_NEEDED[flag]
        num_skipped = 0 if has_value else num_values
        print(f"note: {flag} is not needed: {why}.", file=sys.stderr)
    return left
