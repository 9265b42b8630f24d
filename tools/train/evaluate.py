"""Measure a checkpoint on the held-out test split.

Called by __main__.py. Everything is computed in float32 from the exported bfloat16 weights, on one
thread, so that the numbers of a card repeat.
"""

import ast
import json
import lzma
import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tools.train import tokenizer as names
from tools.train.data import Document
from tools.train.examples import functions
from tools.train.model import Decoder
from tools.train.recipe import ModelShape
from torch.nn.functional import cross_entropy, linear

_NUM_FUNCTIONS = 50
_MAX_NEW_TOKENS = 192
_TEMPERATURE = 0.7
_XZ_FILTERS = [
    {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26}
]  # the dictionary holds the train split
_REQUESTS = ("Write a Python function is_even(n): Return True if n is even.", "What does os.path.join do?")


def measure(folder: Path, documents: Sequence[Document]) -> dict[str, object]:
    """Give everything the card says about quality."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = load_model(folder)
    by_kind = {
        kind: [document for document in documents if document.kind == kind] for kind in ("code", "prose")
    }
    heldout = {
        kind: {
            "nats_per_byte": round(nats_per_byte(model, tokenizer, _of(found, "test")), 4),
            "xz_nats_per_byte": round(xz_nats_per_byte(_of(found, "train"), _of(found, "test")), 4),
            "bytes_per_token": round(names.bytes_per_token(tokenizer, _of(found, "test")), 3),
        }
        for kind, found in by_kind.items()
    }
    openings, written = sampled_functions(model, tokenizer, _of(by_kind["code"], "test"))
    parsed = [is_function(opening, body) for opening, body in zip(openings, written, strict=True)]
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out": heldout,
        "functions": {"sampled": len(parsed), "parsed": sum(parsed), "temperature": _TEMPERATURE},
        "examples": [
            opening + body for opening, body, good in zip(openings, written, parsed, strict=True) if good
        ][:2],
        "chats": [[request, _answer(model, tokenizer, request)] for request in _REQUESTS],
    }


def load_model(folder: Path) -> Decoder:
    """Read an exported checkpoint, widened to float32."""
    config = json.loads((folder / "config.json").read_text())
    shape = ModelShape(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        rope_theta=config["rope_theta"],
        rms_norm_eps=config["rms_norm_eps"],
        max_context_tokens=config["max_position_embeddings"],
    )
    model = Decoder(shape)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in weights.items()})
    return model


@torch.no_grad()
def nats_per_byte(model: Decoder, tokenizer: Tokenizer, documents: Iterable[Document]) -> float:
    """Mean negative log-likelihood per byte; each file starts alone, in windows of the full context."""
    nats, num_bytes = 0.0, 0
    width = model.shape.max_context_tokens
    for document in documents:
        tokens = torch.tensor(tokenizer.encode(document.text).ids)
        num_bytes += len(document.text.encode())
        for start in range(0, len(tokens) - 1, width):
            window = tokens[start : start + width + 1]
            logits = model.logits(window[None, :-1])[0]
            nats += cross_entropy(logits, window[1:], reduction="sum").item()
    return nats / num_bytes


def xz_nats_per_byte(train: Iterable[Document], test: Iterable[Document]) -> float:
    """What xz needs for the test split once it has seen train: size(train + test) - size(train)."""
    seen = "".join(document.text for document in train).encode()
    held_out = "".join(document.text for document in test).encode()
    extra_bytes = _xz_bytes(seen + held_out) - _xz_bytes(seen)
    return extra_bytes * 8 * math.log(2) / len(held_out)


def sampled_functions(
    model: Decoder, tokenizer: Tokenizer, documents: Sequence[Document]
) -> tuple[list[str], list[str]]:
    """Give openings (head and docstring) of held-out functions, and the bodies the model writes."""
    openings = [function.opening for document in documents for function in functions(document)]
    openings = random.Random(0).sample(openings, min(_NUM_FUNCTIONS, len(openings)))
    prompts = [tokenizer.encode(opening).ids for opening in openings]
    texts = continued(model, tokenizer, prompts, temperature=_TEMPERATURE, has_ended=_is_past_body)
    return openings, [_first_body(text) for text in texts]


@torch.no_grad()
def continued(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    *,
    temperature: float,
    has_ended: Callable[[str], bool] = lambda _text: False,
) -> list[str]:
    """Continue every prompt until an end token, until `has_ended` says so, or to the limit; no cache is kept.

    Rows are padded on the right, where causal attention does not look. A text whose model ended it gets
    a line's end, so that its last line is whole.
    """
    generator = torch.Generator().manual_seed(0)
    ends = {tokenizer.token_to_id(names.END), tokenizer.token_to_id(names.TURN_END)}
    rows = [list(prompt) for prompt in prompts]
    texts = [""] * len(rows)
    open_rows = list(range(len(rows)))
    for _ in range(_MAX_NEW_TOKENS):
        lengths = [len(rows[row]) for row in open_rows]
        batch = torch.zeros(len(open_rows), max(lengths), dtype=torch.int64)
        for place, row in enumerate(open_rows):
            batch[place, : lengths[place]] = torch.tensor(rows[row])
        last = model(batch)[torch.arange(len(open_rows)), torch.tensor(lengths) - 1]
        probabilities = torch.softmax(linear(last, model.embed_tokens.weight) / temperature, dim=-1)
        chosen = torch.multinomial(probabilities, 1, generator=generator)[:, 0].tolist()
        still_open = []
        for row, token in zip(open_rows, chosen, strict=True):
            if token in ends:
                texts[row] += "\n"
                continue
            rows[row].append(token)
            texts[row] = tokenizer.decode(rows[row][len(prompts[row]) :])
            if not has_ended(texts[row]):
                still_open.append(row)
        open_rows = still_open
        if not open_rows:
            break
    return texts


def is_function(opening: str, body: str) -> bool:
    """Say whether they parse together; a body without a statement does not count, though Python takes it."""
    try:
        function = ast.parse(opening + body).body[0]
    except (SyntaxError, ValueError):
        return False
    return isinstance(function, ast.FunctionDef) and len(function.body) > 1


def _answer(model: Decoder, tokenizer: Tokenizer, request: str) -> str:
    prompt = f"{names.BEGIN}{names.USER}{request}{names.TURN_END}{names.ASSISTANT}"
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    return continued(model, tokenizer, [ids], temperature=0.3)[0].strip()


def _is_past_body(text: str) -> bool:
    last = text.rpartition("\n")[2]
    return len(text) > len(last) > 0 and not last[0].isspace()


def _first_body(text: str) -> str:
    """Keep whole lines up to the first that is not indented: what belongs to the function."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    kept = []
    for line in lines:
        if line.strip() and not line[0].isspace():
            break
        kept.append(line)
    return "".join(kept)


def _of(documents: Iterable[Document], split: str) -> list[Document]:
    return [document for document in documents if document.split == split]


def _xz_bytes(data: bytes) -> int:
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=_XZ_FILTERS))
