"""Prints the parity figures behind test_parity.py: the best native ISA, and the reference.

python -m tests.parity.report
"""

from functools import partial

import numpy as np
from tests.parity.test_parity import MODELS, Golden, cpu_executor, reference_executor

from penstock.backends.cpu.probe import isas


def main() -> None:
    backends = {f"cpu-{isas()[0]}": partial(cpu_executor, isa=isas()[0])} if isas() else {}
    backends["reference"] = reference_executor
    print(
        f"{'model':15} {'backend':12} fp32 error over largest (1e-4)  greedy 64  bf16 RMS over theirs (1.1)"
    )
    for name in MODELS:
        golden = Golden(name)
        for backend, make in backends.items():
            exact = golden.sequences(make, "float32").run({0: golden.tokens})[0]
            rounded = golden.sequences(make, "bfloat16").run({0: golden.tokens})[0][golden.rows]
            error = np.abs(exact[golden.rows] - golden.exact).max() / np.abs(golden.exact).max()
            start = len(golden.prompt) - 1
            is_equal = exact[start:-1].argmax(axis=1).tolist() == golden.greedy.tolist()
            ours, theirs = rounded - golden.exact, golden.rounded - golden.exact
            ratio = np.sqrt(np.square(ours).mean() / np.square(theirs).mean())
            equal = "equal" if is_equal else "DIFFER"
            print(f"{name:15} {backend:12} {error:28.1e}  {equal:>9}  {ratio:.2f}")


if __name__ == "__main__":
    main()
