"""What every lossy setting costs a model: KL divergence, top-1 agreement and perplexity beside its bytes.

Teacher-forced over one text against the checkpoint as it is. For `penstock bench quality`; rows go to the
quality ledger (benchmarks/ledger.jsonl).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.config import EngineConfig, from_mapping
from penstock.engine.build import Loaded, load_model
from penstock.kv.codec import CODECS
from penstock.request import SamplingParams
from penstock.sampling.rows import RowRequest, make_rows
from penstock.step import StepInput

CHUNK = 64  # rows that need logits at once
Options = Mapping[str, str]

CHECKPOINT: Options = {}  # faithful: what the others are measured against
SETTINGS: tuple[Options, ...] = (
    {"weights": "int8"},
    {"weights": "int8", "activations": "bfloat16"},
    *(
        {"weights": f"int4_g{group}", "head": head, "activations": activations}
        for group in (32, 64, 128)
        for head in ("int8", f"int4_g{group}")
        for activations in ("int8", "bfloat16")
    ),
    *({"kv_dtype": name} for name in CODECS if not CODECS[name].exact),
)


@dataclass(frozen=True, slots=True)
class Quality:
    """Over all rows of a text. `kl` in nats, from the checkpoint's distribution to the setting's."""

    setting: Options
    weight_bytes: int  # of the matrices, as they are kept
    kv_bytes_per_token: int  # all layers, all heads
    kl: float
    top1: float
    perplexity: float
    num_tokens: int

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.setting.items()) or "the checkpoint as it is"


def measure(
    model: str, text: str, settings: Sequence[Options] = SETTINGS, *, max_tokens: int = 1536
) -> Iterator[Quality]:
    """The model as it is first, then with each setting; without those of a cache that it does not have."""
    exact: NDArray[np.float64] | None = None
    keeps_states = False
    for setting in (CHECKPOINT, *settings):
        if keeps_states and "kv_dtype" in setting:
            continue
        loaded = load_model(model, _config(setting))
        tokens = np.array(loaded.tokenizer.encode(text), np.int32)[: min(max_tokens, loaded.plan.max_context)]
        rows = log_softmax(logits(loaded, tokens))
        exact = rows if exact is None else exact
        keeps_states = not loaded.program.kv_layers
        yield compared(setting, loaded, tokens, exact, rows)


def compared(
    setting: Options,
    loaded: Loaded,
    tokens: NDArray[np.int32],
    exact: NDArray[np.float64],
    rows: NDArray[np.float64],
) -> Quality:
    """`exact` and `rows` are log-probabilities [T,V] after each token of the text."""
    codec = CODECS[loaded.plan.kv_dtype]
    return Quality(
        setting=setting,
        weight_bytes=loaded.plan.weight_bytes,
        kv_bytes_per_token=sum(
            layer.num_kv_heads * codec.bytes_per_token(layer.head_dim, has_values=not layer.latent_dim)
            for layer in loaded.program.kv_layers
        ),
        kl=float((np.exp(exact) * (exact - rows)).sum(axis=1).mean()),
        top1=float((exact.argmax(axis=1) == rows.argmax(axis=1)).mean()),
        perplexity=float(np.exp(-rows[np.arange(len(tokens) - 1), tokens[1:]].mean())),
        num_tokens=len(tokens),
    )


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


def table(rows: Sequence[Quality]) -> list[str]:
    width = max(len(row.name) for row in rows) + 2
    lines = [
        f"{'setting':{width}}{'MB':>9}{'KV bytes':>10}{'KL (nats)':>12}{'top-1':>9}{'perplexity':>12}",
    ]
    lines += [
        f"{row.name:{width}}{row.weight_bytes / 1e6:9.2f}{row.kv_bytes_per_token:10,}{row.kl:12.2e}"
        f"{row.top1:9.2%}{row.perplexity:12.3f}"
        for row in rows
    ]
    return lines


def _config(setting: Options) -> EngineConfig:
    return from_mapping({**setting, "max_requests": CHUNK})
