"""llama.cpp as a peer: one llama-bench run per call, so that runs can be interleaved with ours."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """`build`: the cmake build folder; `gguf`: where MODEL-TYPE.gguf files lie."""

    build: Path
    gguf: Path
    model: str
    threads: int

    def decode(self, kind: str, context: int, num_tokens: int) -> float:
        """Tokens per second of one stream after `context` tokens."""
        return self._bench(kind, "-p", "0", "-n", str(num_tokens), "-d", str(context))

    def prefill(self, kind: str, num_tokens: int) -> float:
        """Prompt tokens per second."""
        return self._bench(kind, "-p", str(num_tokens), "-n", "0", "-ub", "512", "-b", "2048")

    def _bench(self, kind: str, *arguments: str) -> float:
        command = [
            str(self.build / "bin" / "llama-bench"), "-m", str(self.gguf / f"{self.model}-{kind}.gguf"),
            "-t", str(self.threads), "-o", "json", "-r", "1", "-fa", "auto", *arguments,
        ]  # fmt: skip
        rows = json.loads(subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL))
        return float(rows[0]["avg_ts"])
