"""Measurements, data list and training log -> the model card (README.md of the checkpoint).

Called by __main__.py. Every number of a card comes from a file of the record folder.
"""

import json
from pathlib import Path
from typing import Any

from tools.train.curve import write_curve
from tools.train.recipe import RECIPES, Recipe

_LICENCE = """\
The weights and the tokenizer in this folder are released under the Apache License 2.0.

They were trained on the sources and the documentation of Python, Copyright (c) Python Software
Foundation, licensed under the PSF License Agreement, version 2 (https://docs.python.org/3/license.html),
and on packages under permissive licences; README.md names each with its version and licence.
No text of that corpus is included; short pieces of it may be reproduced by the model.
"""
_BASELINES = {"xz": "xz", "ppmd": "PPMd, order 16", "kneser_ney": "5-gram Kneser-Ney"}


def write_card(
    recipe: Recipe,
    model: Path,
    record: Path,
    measured: dict[str, Any],  # Any: what measure() found, as JSON
) -> None:
    """Store `measured`, draw the curve, write README.md and LICENSE beside the weights."""
    (record / "evaluation.json").write_text(json.dumps(measured, indent=2, ensure_ascii=False) + "\n")
    write_curve(record / "log.jsonl", record / "loss.svg")
    steps = [json.loads(line) for line in (record / "log.jsonl").read_text().splitlines()]
    config = json.loads((model / "config.json").read_text())
    (model / "LICENSE").write_text(_LICENCE)
    parts = [
        _opening(recipe, config, measured),
        _held_out(measured["held_out"]),
        _written(measured),
        _acceptance(measured["acceptance"]),
        _training(recipe, steps, _before(recipe, record.parent)),
        _data(json.loads((record / "data.json").read_text())),
        (record / "notes.md").read_text() if (record / "notes.md").is_file() else "",
        _CLOSING,
    ]
    (model / "README.md").write_text("\n".join(part for part in parts if part))


def _opening(recipe: Recipe, config: dict[str, Any], measured: dict[str, Any]) -> str:
    kind = "guesses the next tokens of penstock-tiny" if recipe.teacher else "writes Python-looking Python"
    return f"""\
---
license: apache-2.0
language: [en]
library_name: penstock
pipeline_tag: text-generation
tags: [python, code, tiny]
---
# {recipe.name}

A very small Llama-shaped language model that {kind}. It is embedded in Penstock so that
an engine can be tried, tested and measured without a download. It is not made to be useful.

{measured["num_parameters"] / 1e6:.2f} million parameters: {config["num_hidden_layers"]} layers, \
hidden size {config["hidden_size"]}, {config["num_attention_heads"]} heads, \
{config["num_key_value_heads"]} key-value heads, head_dim {config["head_dim"]}, \
intermediate size {config["intermediate_size"]}, vocabulary {config["vocab_size"]} (byte-level BPE), \
tied embeddings, bfloat16, context {config["max_position_embeddings"]} tokens.
"""


def _held_out(held_out: dict[str, Any]) -> str:
    names = " | ".join(_BASELINES.values())
    rows = "\n".join(
        f"| {kind} | {row['files']} files, {row['bytes'] / 1e3:.0f} kB | {row['nats_per_byte']:.3f} | "
        + " | ".join(f"{row[name]:.3f}" for name in _BASELINES)
        + f" | {row['nats_per_byte'] / min(row[name] for name in _BASELINES) - 1:+.0%} "
        + f"| {row['bytes_per_token']:.2f} |"
        for kind, row in held_out.items()
    )
    return f"""\
## Held-out loss
Nats per byte on whole files of the test split, which neither the tokenizer nor the model saw; each file
alone, in windows of the full context. The other models saw the whole training split first: xz with a
dictionary over all of it and PPMd count size(train + test) - size(train); the 5-gram model counts the same
tokens.

| text | measured on | this model | {names} | against the best | bytes per token |
|---|---|---|---|---|---|---|---|
{rows}
"""


def _written(measured: dict[str, Any]) -> str:
    functions, gaps = measured["functions"], measured["gaps"]
    written = "\n\n".join(f"```python\n{text.rstrip()}\n```" for text in measured["examples"])
    chats = "\n\n".join(f"> {request}\n\n```\n{answer}\n```" for request, answer in measured["chats"])
    share = functions["parsed"] / functions["sampled"]
    return f"""\
## What it writes
Of {functions["sampled"]} real openings (head and docstring) of held-out functions, completed at \
temperature {functions["temperature"]}, {functions["parsed"]} ({share:.0%})
parse as Python. A completion that reaches 192 tokens loses its last, unfinished line.
Fill-in-the-middle: {gaps["exact"]} of {gaps["asked"]} gaps in held-out functions come back exactly, \
greedily; of those of one line {gaps["exact_one_line"]} of {gaps["asked_one_line"]}.

The first two completions that parse, then three chats (code, JSON, a tool), greedy, as they came.

{written}

{chats}
"""


def _acceptance(found: dict[str, Any]) -> str:
    if not found:
        return ""
    chains, took = found["chains"], found["step_s"]
    return f"""\
## Guessing ahead
`penstock-draft` ({found["draft_parameters"] / 1e6:.2f} million parameters) agrees with this model's \
likeliest next token on {found["draft_greedy"]:.1%} of
{found["tokens"]} tokens of held-out code; at T = 1 {found["draft_sampled"]:.1%} would be taken \
(mean of sum(min(p, q))). The engine's native call for one token takes it {took["draft"] * 1e3:.2f} ms, \
this model
{took["target"] * 1e3:.2f} ms ({took["draft"] / took["target"]:.0%}; one thread, least of 96 by turns).
Mean tokens taken from chains of 4 on this model's own greedy text: draft {chains["draft"]:.2f}, \
Medusa-style heads {chains["medusa"]:.2f},
feature head {chains["eagle"]:.2f} (`heads/`; docs/heads.md of the repository has the format).
"""


def _before(recipe: Recipe, records: Path) -> list[str]:
    """Say of each model that this one was grown from, the last first, what it had cost."""
    said = []
    while recipe.grown_from:
        recipe = RECIPES[recipe.grown_from]
        last = json.loads((records / recipe.name / "log.jsonl").read_text().splitlines()[-1])
        tokens, minutes = last["num_tokens"] / 1e6, last["elapsed_s"] / 60
        said.append(f"`{recipe.name}` ({tokens:.2f} million tokens, {minutes:.0f} minutes)")
    return said


def _training(recipe: Recipe, steps: list[dict[str, Any]], before: list[str]) -> str:
    stages = ", ".join(
        f"{sum(step['stage'] == stage for step in steps)} steps `{stage}`"
        for stage in dict.fromkeys(step["stage"] for step in steps)
    )
    begun = f"It began with the weights of {', grown from '.join(before)}. " if before else ""
    taught = f"`{recipe.teacher}` was its teacher. " if recipe.teacher else ""
    num_tokens, minutes = steps[-1]["num_tokens"], steps[-1]["elapsed_s"] / 60
    return f"""\
## Training
{stages}, {num_tokens / 1e6:.2f} million tokens, {minutes:.0f} minutes of wall time
on one CPU thread of a machine that others used as well, in bfloat16 with float32
masters; Muon for the matrices, AdamW for embedding and norms; warm-up, a stable rate, a linear fall.
{begun}{taught}
`tools/train/README.md` says how to repeat it;
`tools/train/record/{recipe.name}/` holds the log, the loss curve and the measurements.
"""


def _data(data: dict[str, Any]) -> str:
    sources = "\n".join(
        f"| {source['name']} | {source['version']} | {source['licence']} | "
        + " | ".join(
            f"{split['files']}, {split['bytes'] / 1e6:.2f} MB" for split in source["splits"].values()
        )
        + " |"
        for source in data["sources"]
    )
    removed, seen = data["removed"], data["seen_share"]
    return f"""\
## Data
Python's own sources and documentation, and the packages of the project's environments that declare a
permissive licence and nothing else. Splits are by file, from the SHA-256 of its path. Left out: tests, data
tables, {removed["exact"]} exact copies, {removed["near"]} texts that share half of their lines with another \
(MinHash), and {removed["seen"]} held-out texts of which
training holds more than {data["max_seen_share"]:.0%} of the windows of {data["window_words"]} words. What \
stayed shares {seen["test"]:.1%} of its windows (test).

| source | version | licence | train | validation | test |
|---|---|---|---|---|---|
{sources}

Corpus SHA-256: `{data["sha256"]}`.
"""


_CLOSING = """\
## What it cannot do
It knows no facts, follows no instruction reliably, and what it writes seldom runs. It was trained on Python
and on English technical prose; other languages, human or not, are noise to it. Chat, tools and
fill-in-the-middle are shown, not learned well. It may repeat pieces of its corpus word for word. Do not rely
on anything it says.

## Licence
Weights: Apache-2.0. See `LICENSE` for the licence of the corpus.
"""
