"""Measurements, data list and training log -> the model card (README.md of the checkpoint).

Called by __main__.py. Every number of a card comes from a file of the record folder.
"""

import json
from pathlib import Path
from typing import Any

from tools.train.curve import write_curve

_LICENCE = """\
The weights and the tokenizer in this folder are released under the Apache License 2.0.

They were trained on the sources and the documentation of Python, Copyright (c) Python Software
Foundation, licensed under the PSF License Agreement, version 2 (https://docs.python.org/3/license.html).
No text of that corpus is included; short pieces of it may be reproduced by the model.
"""


def write_card(
    model: Path, record: Path, measured: dict[str, Any]
) -> None:  # Any: what measure() found, as JSON
    """Store `measured`, draw the curve, write README.md and LICENSE beside the weights."""
    (record / "evaluation.json").write_text(json.dumps(measured, indent=2, ensure_ascii=False) + "\n")
    write_curve(record / "log.jsonl", record / "loss.svg")
    data = json.loads((record / "data.json").read_text())
    steps = [json.loads(line) for line in (record / "log.jsonl").read_text().splitlines()]
    config = json.loads((model / "config.json").read_text())
    (model / "LICENSE").write_text(_LICENCE)
    (model / "README.md").write_text(_card(model.name, record, config, measured, data, steps))


def _card(
    name: str,
    record: Path,
    config: dict[str, Any],
    measured: dict[str, Any],
    data: dict[str, Any],
    steps: list[dict[str, Any]],
) -> str:
    held_out, functions = measured["held_out"], measured["functions"]
    losses = "\n".join(
        f"| {kind} | {row['nats_per_byte']:.3f} | {row['xz_nats_per_byte']:.3f} "
        f"| {row['bytes_per_token']:.2f} |"
        for kind, row in held_out.items()
    )
    sources = "\n".join(
        f"| {source['name']} | {source['version']} | {source['licence']} | "
        + " | ".join(
            f"{split['files']} files, {split['bytes'] / 1e6:.2f} MB" for split in source["splits"].values()
        )
        + " |"
        for source in data["sources"]
    )
    stages = ", ".join(
        f"{sum(step['stage'] == stage for step in steps)} steps `{stage}`"
        for stage in dict.fromkeys(step["stage"] for step in steps)
    )
    notes = (record / "notes.md").read_text() if (record / "notes.md").is_file() else ""
    written = "\n\n".join(f"```python\n{text.rstrip()}\n```" for text in measured["examples"])
    chats = "\n\n".join(f"> {request}\n\n```python\n{answer}\n```" for request, answer in measured["chats"])
    return f"""\
---
license: apache-2.0
language: [en]
library_name: penstock
pipeline_tag: text-generation
tags: [python, code, tiny]
---
# {name}

A very small Llama-shaped language model that writes Python-looking Python. It is embedded in Penstock so that
an engine can be tried, tested and measured without a download. It is not made to be useful.

{measured["num_parameters"] / 1e6:.2f} million parameters: {config["num_hidden_layers"]} layers, \
hidden size {config["hidden_size"]}, {config["num_attention_heads"]} heads, \
{config["num_key_value_heads"]} key-value heads, head_dim {config["head_dim"]}, \
intermediate size {config["intermediate_size"]}, vocabulary {config["vocab_size"]} (byte-level BPE), \
tied embeddings, bfloat16, context {config["max_position_embeddings"]} tokens.

## Held-out loss
Files that neither the tokenizer nor the model saw; each file alone, in windows of the full context.

| text | nats per byte | xz that saw the train split | bytes per token |
|---|---|---|---|
{losses}

The xz column is size(train + test) - size(train) with a dictionary over all of it, in nats per byte.

Of {functions["sampled"]} real openings (head and docstring) of held-out functions, completed at \
temperature {functions["temperature"]}, {functions["parsed"]} \
({functions["parsed"] / functions["sampled"]:.0%}) parse as Python. A completion
that reaches 192 tokens loses its last, unfinished line.

## What it writes
The first two of those completions that parse, then two chats at temperature 0.3, as they came.

{written}

{chats}

## Training
{stages}, {steps[-1]["num_tokens"] / 1e6:.2f} million tokens, \
{steps[-1]["elapsed_s"] / 60:.1f} minutes on one CPU thread in bfloat16 with float32 masters; Muon for the \
matrices, AdamW for embedding and norms; warm-up, a stable rate, linear falls
(the log has every rate). The later stages mix in chat turns made from docstrings and functions, and
fill-in-the-middle examples. `tools/train/README.md` says how to repeat it;
`tools/train/record/{name}/` holds the log, the loss curve and the measurements.

## Data
| source | version | licence | train | validation | test |
|---|---|---|---|---|---|
{sources}

Splits are by file, from the SHA-256 of its path; exact duplicates are removed before; tests and data tables
of the standard library are left out. Corpus SHA-256: `{data["sha256"]}`.

{notes}
## What it cannot do
It knows no facts, follows no instruction reliably, and what it writes seldom runs. It was trained on Python
and on English technical prose; other languages, human or not, are noise to it. Chat and fill-in-the-middle
are shown, not learned well. It may repeat pieces of the standard library word for word. Do not rely on
anything it says.

## Licence
Weights: Apache-2.0. See `LICENSE` for the licence of the corpus.
"""
