"""Prints what each lossy KV codec costs a model: KL divergence and top-1 agreement, beside its bytes.

    python -m tools.kv_quality [MODEL] [--text FILE]

Teacher-forced over one text, chunk by chunk, against the same model with its own keys and values. Run by
hand and by tests/llm/test_kv_quality.py.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.config import EngineConfig
from penstock.engine.build import Loaded, load_model
from penstock.kv.codec import CODECS
from penstock.request import SamplingParams
from penstock.sampling.rows import RowRequest, make_rows
from penstock.step import StepInput

TEXT = Path(__file__).parents[1] / "ARCHITECTURE.md"
CHUNK = 64  # rows that need logits at once


@dataclass(frozen=True, slots=True)
class Quality:
    """Over all rows of a text. `kl` in nats, from the exact distribution to the codec's."""

    codec: str
    bytes_per_token: int  # all layers, all heads
    kl: float
    top1: float
    perplexity: float


def logits(loaded: Loaded, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """[T,V], teacher-forced; the text lies in blocks 1, 2, ... of every KV group."""
    size = loaded.plan.block_size
    table = np.arange(1, -(-len(tokens) // size) + 1, dtype=np.int32)[None]
    greedy = SamplingParams(temperature=0.0)
    rows: list[NDArray[np.float32]] = []
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        asks = [
            RowRequest(params=greedy, seed=0, position=0, prompt_tokens=[], output_tokens=[]) for _ in chunk
        ]
        step = StepInput(
            tokens=chunk,
            positions=np.arange(start, start + len(chunk), dtype=np.int32),
            query_start=np.array([0, len(chunk)], np.int32),
            context_len=np.array([start + len(chunk)], np.int32),
            block_tables=(table,) * len(loaded.plan.num_kv_blocks),
            logit_rows=np.arange(len(chunk), dtype=np.int32),
            sampling=make_rows(asks, loaded.spec.vocab_size),
            taps=("logits",),
        )
        rows.append(loaded.executor.forward(step).taps["logits"])
    return np.concatenate(rows)


def log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    y: NDArray[np.float64] = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    y -= np.log(np.exp(y).sum(axis=1, keepdims=True))
    return y


def measure(model: str, text: str, *, max_tokens: int = 1536) -> list[Quality]:
    """The model as it is first, then with every lossy codec."""
    found: list[Quality] = []
    exact: NDArray[np.float64] | None = None
    for codec in ["auto", *(name for name in CODECS if not CODECS[name].exact)]:
        loaded = load_model(model, EngineConfig(kv_dtype=codec, max_requests=CHUNK))
        tokens = np.array(loaded.tokenizer.encode(text), np.int32)[: min(max_tokens, loaded.plan.max_context)]
        rows = log_softmax(logits(loaded, tokens))
        exact = rows if exact is None else exact
        used = CODECS[loaded.plan.kv_dtype]
        found.append(
            Quality(
                codec=used.name,
                bytes_per_token=sum(
                    layer.num_kv_heads * used.bytes_per_token(layer.head_dim)
                    for layer in loaded.program.kv_layers
                ),
                kl=float((np.exp(exact) * (exact - rows)).sum(axis=1).mean()),
                top1=float((exact.argmax(axis=1) == rows.argmax(axis=1)).mean()),
                perplexity=float(np.exp(-rows[np.arange(len(tokens) - 1), tokens[1:]].mean())),
            )
        )
    return found


def table(rows: list[Quality]) -> str:
    lines = [f"{'keys and values':16}{'bytes a token':>14}{'KL (nats)':>12}{'top-1':>9}{'perplexity':>12}"]
    lines += [
        f"{row.codec:16}{row.bytes_per_token:14,}{row.kl:12.2e}{row.top1:9.2%}{row.perplexity:12.3f}"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="penstock-tiny")
    parser.add_argument("--text", type=Path, default=TEXT)
    args = parser.parse_args()
    print(table(measure(args.model, args.text.read_text("utf-8"))))


if __name__ == "__main__":
    main()
