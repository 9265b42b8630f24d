"""Measure a checkpoint on the held-out test split.

Called by __main__.py. Losses and acceptances are computed in float32 from the exported bfloat16 weights, on
one thread, so that the numbers of a card repeat; what a model writes comes from the engine.
"""

import ast
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tools.train import baselines
from tools.train import tokenizer as names
from tools.train.acceptance import chain_acceptance, draft_acceptance
from tools.train.data import Corpus, data_list
from tools.train.examples import functions, gaps
from tools.train.heads import FeatureHead, MedusaHeads
from tools.train.model import Decoder
from tools.train.own_text import continued, openings, step_seconds
from tools.train.recipe import ModelShape
from tools.train.sources import Document
from torch.nn.functional import cross_entropy

_NUM_FUNCTIONS, _NUM_GAPS, _NUM_CHAINS = 200, 150, 24
_MAX_NEW_TOKENS = 192
_TEMPERATURE = 0.7
_ACCEPTANCE_TOKENS = 24_000
_KINDS = ("code", "prose")
_REQUESTS = (
    "Write a Python function is_even(n): Return True if n is even.",
    'Write this as a JSON object: name is "disk", size is 12.',
)
_TOOL = {
    "name": "read_file",
    "description": "Return the text of a file.",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}


@dataclass(frozen=True, slots=True)
class Paths:
    """What is measured: the model, and the draft and heads that guess for it where there are any."""

    model: Path
    draft: Path
    baselines: Path


def measure(paths: Paths, corpus: Corpus, stored: Path) -> dict[str, Any]:  # Any: JSON
    """Give everything the card says about quality.

    What `stored` says of these very weights and this corpus is taken from there: only the draft and the heads
    are measured again.
    """
    torch.set_num_threads(1)
    tokenizer = plain_tokenizer(paths.model)
    model = load_model(paths.model)
    weights = sha256((paths.model / "model.safetensors").read_bytes()).hexdigest()
    of = {"weights": weights, "corpus": data_list(corpus)["sha256"]}
    known = json.loads(stored.read_text()) if stored.is_file() else {}
    alone = known if known.get("of") == of else _alone(paths, tokenizer, model, corpus)
    together = acceptances(paths, tokenizer, model, corpus) if paths.draft.is_dir() else {}
    return {**alone, "of": of, "acceptance": together}


def _alone(paths: Paths, tokenizer: Tokenizer, model: Decoder, corpus: Corpus) -> dict[str, Any]:
    simple = baseline_losses(tokenizer, corpus, paths.baselines)
    held_out = {}
    for kind in _KINDS:
        documents = corpus.held_out(kind)
        held_out[kind] = {
            "files": len(documents),
            "bytes": sum(len(document.text.encode()) for document in documents),
            "nats_per_byte": round(nats_per_byte(model, tokenizer, documents), 4),
            **simple[kind],
            "bytes_per_token": round(names.bytes_per_token(tokenizer, documents), 3),
        }
    code = corpus.of("test", "code")
    heads, written = sampled_functions(paths.model, code)
    parsed = [is_function(opening, body) for opening, body in zip(heads, written, strict=True)]
    found = [opening + body for opening, body, is_good in zip(heads, written, parsed, strict=True) if is_good]
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out": held_out,
        "functions": {"sampled": len(parsed), "parsed": sum(parsed), "temperature": _TEMPERATURE},
        "gaps": filled_gaps(paths.model, tokenizer, code),
        "examples": found[:2],
        "chats": _chats(paths.model, tokenizer),
    }


def baseline_losses(tokenizer: Tokenizer, corpus: Corpus, stored: Path) -> dict[str, dict[str, float]]:
    """Compute what simpler models make of the held-out text, once for a corpus and a vocabulary."""
    of = {"corpus": data_list(corpus)["sha256"], "vocabulary": tokenizer.get_vocab_size()}
    if stored.is_file():
        known = json.loads(stored.read_text())
        if known["of"] == of:
            return dict(known["losses"])
    losses: dict[str, dict[str, float]] = {}
    for kind in _KINDS:
        train, test = corpus.of("train", kind), corpus.held_out(kind)
        losses[kind] = {
            "xz": round(baselines.xz_nats_per_byte(train, test), 4),
            "ppmd": round(baselines.ppmd_nats_per_byte(train, test), 4),
            "kneser_ney": round(baselines.kneser_ney_nats_per_byte(tokenizer, train, test), 4),
        }
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps({"of": of, "losses": losses}, indent=1) + "\n")
    return losses


def plain_tokenizer(folder: Path) -> Tokenizer:
    """Read a tokenizer that takes the names of special tokens in a text as text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


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


def sampled_functions(folder: Path, documents: Sequence[Document]) -> tuple[list[str], list[str]]:
    """Give openings (head and docstring) of held-out functions, and the bodies the model writes."""
    heads = [function.opening for document in documents for function in functions(document)]
    heads = random.Random(0).sample(heads, min(_NUM_FUNCTIONS, len(heads)))
    written = continued(folder, heads, max_tokens=_MAX_NEW_TOKENS, temperature=_TEMPERATURE)
    is_cut = [len(tokens) == _MAX_NEW_TOKENS for _, tokens, _ in written]
    return heads, [
        first_body(text if cut else text + "\n") for (_, _, text), cut in zip(written, is_cut, strict=True)
    ]


def filled_gaps(folder: Path, tokenizer: Tokenizer, documents: Sequence[Document]) -> dict[str, int]:
    """Count held-out functions whose missing lines come back exactly, greedily; gaps of one line apart."""
    ids = names.special_ids(tokenizer)
    found = list(gaps(documents, random.Random(0)))
    found = random.Random(1).sample(found, min(_NUM_GAPS, len(found)))
    prompts = [
        [
            *(ids[names.BEGIN], ids[names.FIM_PREFIX], *_encode(tokenizer, gap.prefix)),
            *(ids[names.FIM_SUFFIX], *_encode(tokenizer, gap.suffix), ids[names.FIM_MIDDLE]),
        ]
        for gap in found
    ]
    written = continued(folder, prompts, max_tokens=96)
    is_exact = [text.strip() == gap.middle.strip() for (_, _, text), gap in zip(written, found, strict=True)]
    is_short = [gap.middle.count("\n") == 1 for gap in found]
    return {
        "asked": len(found),
        "exact": sum(is_exact),
        "asked_one_line": sum(is_short),
        "exact_one_line": sum(exact and short for exact, short in zip(is_exact, is_short, strict=True)),
    }


def acceptances(paths: Paths, tokenizer: Tokenizer, model: Decoder, corpus: Corpus) -> dict[str, Any]:
    """Acceptance of the draft on held-out code, and of draft and heads on the model's own greedy text."""
    draft = load_model(paths.draft)
    medusa, eagle = MedusaHeads(model.shape), FeatureHead(model.shape)
    for name, head in (("medusa", medusa), ("eagle", eagle)):
        stored = load_file(paths.model / "heads" / f"{name}.safetensors")
        head.load_state_dict({key: tensor.float() for key, tensor in stored.items()})
    rows, count = [], 0
    for document in corpus.held_out("code"):
        tokens = tokenizer.encode(document.text).ids[:1024]
        rows.append(torch.tensor(tokens))
        count += len(tokens)
        if count > _ACCEPTANCE_TOKENS:
            break
    begun = openings(corpus.of("test", "code"), _NUM_CHAINS, seed=5)
    greedy = [
        (torch.tensor(prompt + tokens), len(prompt))
        for prompt, tokens, _ in continued(paths.model, begun, max_tokens=128)
    ]
    on_text = draft_acceptance(model, draft, rows)
    in_chains = chain_acceptance(model, greedy, draft, medusa, eagle)
    return {
        "draft_greedy": round(on_text["greedy"], 4),
        "draft_sampled": round(on_text["sampled"], 4),
        "tokens": count,
        "chains": {name: round(taken, 3) for name, taken in in_chains.items()},
        "step_s": dict(zip(("target", "draft"), step_seconds([paths.model, paths.draft]), strict=True)),
        "draft_parameters": sum(parameter.numel() for parameter in draft.parameters()),
    }


def is_function(opening: str, body: str) -> bool:
    """Say whether they parse together; a body without a statement does not count, though Python takes it."""
    try:
        function = ast.parse(opening + body).body[0]
    except (SyntaxError, ValueError):
        return False
    return isinstance(function, ast.FunctionDef) and len(function.body) > 1


def first_body(text: str) -> str:
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


def _chats(folder: Path, tokenizer: Tokenizer) -> list[list[str]]:
    ids = names.special_ids(tokenizer)
    tools = [ids[names.SYSTEM], *_encode(tokenizer, f"Tools:\n{json.dumps(_TOOL)}\n"), ids[names.TURN_END]]
    asked = [(request, list[int]()) for request in _REQUESTS]
    asked.append(('Call read_file with path = "notes.txt".', tools))
    prompts = [
        [
            *(ids[names.BEGIN], *before, ids[names.USER], *_encode(tokenizer, request)),
            *(ids[names.TURN_END], ids[names.ASSISTANT]),
        ]
        for request, before in asked
    ]
    written = continued(folder, prompts, max_tokens=120)
    return [
        [request, tokenizer.decode(tokens, skip_special_tokens=False).removesuffix(names.TURN_END).strip()]
        for (request, _), (_, tokens, _) in zip(asked, written, strict=True)
    ]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
