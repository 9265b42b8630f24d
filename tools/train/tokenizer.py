"""The tokenizer of the embedded models: byte-level BPE, trained on the train split only.

Called by __main__.py. Every byte string round-trips: there is no normalizer and no unknown token.
Special tokens take the first ids, in the order below, so that a retrained vocabulary does not move them.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tools.train.sources import Document

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT, TOOL, TURN_END = (
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|turn_end|>",
)
TOOL_CALL, TOOL_CALL_END = "<|tool_call|>", "<|tool_call_end|>"
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
SPECIAL_TOKENS = (
    *(BEGIN, END, PAD, SYSTEM, USER, ASSISTANT, TOOL, TURN_END, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE),
    *(TOOL_CALL, TOOL_CALL_END, "<|think|>", "<|think_end|>"),
    *(f"<|reserved_{number}|>" for number in range(17)),
)

# Words take one leading space, digits come in threes, the spaces of an indentation stay one piece.
_PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# Tools are listed as JSON, one a line, in a turn of the system; calls are JSON between two own tokens.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}{{ '<|system|>Tools:\\n' }}"
    "{% for tool in tools %}{{ (tool['function'] if 'function' in tool else tool) | tojson }}"
    "{{ '\\n' }}{% endfor %}"
    "{{ '<|turn_end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' + message['role'] + '; use system, user, assistant or tool') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}{% if message['content'] %}{{ message['content'] }}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}"
    "{% set function = call['function'] if 'function' in call else call %}"
    "{{ '<|tool_call|>{\"name\": ' }}{{ function['name'] | tojson }}{{ ', \"arguments\": ' }}"
    "{% if function['arguments'] is string %}{{ function['arguments'] }}"
    "{% else %}{{ function['arguments'] | tojson }}{% endif %}{{ '}<|tool_call_end|>' }}"
    "{% endfor %}"
    "{{ '<|turn_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> Tokenizer:
    """Train on `documents`, which must be of the train split alone."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B:1",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return tokenizer


def truncated(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Give the tokenizer that training to `vocab_size` would have given: BPE only ever adds merges."""
    stored = json.loads(tokenizer.to_str())
    vocabulary = {token: number for token, number in stored["model"]["vocab"].items() if number < vocab_size}
    stored["model"]["vocab"] = vocabulary
    stored["model"]["merges"] = [pair for pair in stored["model"]["merges"] if "".join(pair) in vocabulary]
    smaller: Tokenizer = Tokenizer.from_str(json.dumps(stored))
    return smaller


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Give the id of every special token; refuse a tokenizer that lacks one."""
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    missing = sorted(token for token, number in ids.items() if number is None)
    if missing:
        raise SystemExit(f"the tokenizer lacks {', '.join(missing)}; it is not one of ours: train it again")
    return {token: number for token, number in ids.items() if number is not None}


def bytes_per_token(tokenizer: Tokenizer, documents: Iterable[Document]) -> float:
    """Mean bytes of text that one token stands for: the tokenizer's compression."""
    texts = [document.text for document in documents]
    num_tokens = sum(len(row.ids) for row in tokenizer.encode_batch(texts, add_special_tokens=False))
    return sum(len(text.encode()) for text in texts) / num_tokens


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_context_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_context_tokens,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
