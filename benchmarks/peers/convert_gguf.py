"""Checkpoint -> GGUF with llama.cpp's own converter, then llama-quantize. Runs in the peer's environment.

    convert_gguf.py MODEL_DIR OUT_DIR LLAMA_CPP_SOURCE LLAMA_QUANTIZE TYPE...

The converter knows tokenizers by a hash of what they make of a text and refuses others, ours of random shapes
included; its look-up is replaced by the plain GPT-2 answer, which speed does not depend on.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path


def convert(model: Path, source: Path, target: Path) -> None:
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import conversion.base as converter

    for kind in vars(converter).values():
        if isinstance(kind, type) and hasattr(kind, "get_vocab_base_pre"):
            kind.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", str(model), "--outtype", "bf16", "--outfile", str(target)]
    runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")


def main() -> None:
    (model, out, source, quantize), kinds = map(Path, sys.argv[1:5]), sys.argv[5:]  # convert() sets argv
    out.mkdir(parents=True, exist_ok=True)
    whole = out / f"{model.name}-BF16.gguf"
    if not whole.exists():
        convert(model, source, whole)
    for kind in kinds:
        target = out / f"{model.name}-{kind}.gguf"
        pure = ["--pure"] if kind.endswith("-pure") else []  # the tied head, too, instead of Q6_K
        if not target.exists():
            subprocess.check_call(
                [quantize, *pure, whole, target, kind.removesuffix("-pure"), str(os.cpu_count())],
                stdout=subprocess.DEVNULL,
            )
        print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
