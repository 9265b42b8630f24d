"""Prints what choices inside the quantizers cost a model: scale rules of int4, K blocks of int8 activations.

    python -m tools.quantizers [MODEL] [--text FILE] [--max-tokens N]

Each choice alone, on the reference backend: weights replaced by what their codes stand for while activations
stay as they are, or the other way round. Slow, exact in everything else. docs/benchmarks.md has its figures.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.backends.reference.executor import ReferenceExecutor
from penstock.bench.quality import compared, log_softmax, logits, table
from penstock.config import EngineConfig
from penstock.engine.build import Loaded, load_model
from penstock.ops import rounding
from penstock.weights.formats.int4 import RULES, Int4

TEXT = Path(__file__).parents[1] / "ARCHITECTURE.md"
F32 = NDArray[np.float32]


def with_weights(loaded: Loaded, change: Callable[[F32], F32]) -> Loaded:
    """The same model, every matrix of its layers changed; embedding and head stay."""
    old = loaded.executor
    assert isinstance(old, ReferenceExecutor)
    weights: dict[str, F32] = {}
    for name, use in loaded.program.weights.items():
        w = np.asarray(old.weight(name))
        weights[name] = change(w) if use.kind == "linear" and "lm_head" not in name else w
    executor = ReferenceExecutor(
        loaded.program,
        weights,
        num_kv_blocks=loaded.plan.num_kv_blocks,
        block_size=loaded.plan.block_size,
    )
    return replace(loaded, executor=executor)


def variants(loaded: Loaded) -> Iterator[tuple[str, Loaded]]:
    for group in (32, 64, 128):
        for rule in RULES:
            quantizer = Int4(group, rule)

            def through(w: F32, quantizer: Int4 = quantizer) -> F32:
                return quantizer.unpack(quantizer.pack(w), *w.shape)

            yield f"int4_g{group} {rule}", with_weights(loaded, through)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="penstock-tiny")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--max-tokens", type=int, default=256)
    args = parser.parse_args()
    config = EngineConfig(backend="reference", max_requests=64, max_context=args.max_tokens)
    loaded = load_model(args.model, config)
    tokens = np.array(loaded.tokenizer.encode(args.text.read_text("utf-8")), np.int32)[: args.max_tokens]
    exact = log_softmax(logits(loaded, tokens))
    rows = [compared({}, loaded, tokens, exact, exact)]
    for name, changed in variants(loaded):
        found = log_softmax(logits(changed, tokens))
        rows.append(compared({"weights": name}, loaded, tokens, exact, found))
    through_int8 = rounding.through_int8
    for block in (64, 128, 256, 4096):

        def blocked(x: F32, block: int = block) -> F32:
            return through_int8(x, block_size=block)

        rounding.to_bfloat16, kept = blocked, rounding.to_bfloat16  # where the program rounds its operands
        try:
            found = log_softmax(logits(loaded, tokens))
        finally:
            rounding.to_bfloat16 = kept
        rows.append(compared({"activations": f"int8 per {block}"}, loaded, tokens, exact, found))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
