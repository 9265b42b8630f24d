"""Measures every family beside transformers and writes the table of docs/models.md.

    python -m tests.parity.report [NAME ...]     prints the rows of these goldens, by default of all
    python -m tests.parity.report --write        and puts the tables into docs/models.md

Figures are those behind test_parity.py, on the best native ISA where there is one, else the reference.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
from tests.parity import test_encoders as encoders
from tests.parity.steps import Sequences
from tests.parity.test_parity import (
    BLOCK_SIZE,
    MODELS,
    Golden,
    MakeExecutor,
    cpu_executor,
    reference_executor,
)

from penstock.backends.cpu.probe import isas
from penstock.model.program import Program

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- table: python -m tests.parity.report --write -->", "<!-- end of table -->"
HEADER = (
    "| architecture | model | fp32 error | greedy 64 | bf16 RMS | bf16 argmax | chunks, neighbours |"
    " prefix hit | runs on |\n|---|---|---|---|---|---|---|---|---|"
)

ENCODERS_BEGIN = "<!-- encoders: python -m tests.parity.report --write -->"
ENCODERS_END = "<!-- end of encoders -->"
ENCODERS_HEADER = (
    "| architecture | model | fp32 error | bf16 RMS | neighbours | runs on |\n|---|---|---|---|---|---|"
)


def row(name: str, make: MakeExecutor, backend: str) -> str:
    """One line of the table."""
    golden = Golden(name)
    exact = golden.sequences(make, "float32").run({0: golden.tokens})[0]
    rounded = golden.sequences(make, "bfloat16").run({0: golden.tokens})[0]
    error = np.abs(exact[golden.rows] - golden.exact).max() / np.abs(golden.exact).max()
    start = len(golden.prompt) - 1
    is_greedy = exact[start:-1].argmax(axis=1).tolist() == golden.greedy.tolist()
    ours, theirs = rounded[golden.rows] - golden.exact, golden.rounded - golden.exact
    ratio = np.sqrt(np.square(ours).mean() / np.square(theirs).mean())
    cells = [
        golden.spec.architecture,
        name,
        f"{error:.0e}",
        _verdict(is_greedy),
        f"{ratio:.2f}",
        _argmax(golden, rounded[golden.rows]),
        _verdict(all(_chunks_are_equal(golden, make, dtype) for dtype in ("float32", "bfloat16"))),
        _verdict(_hit_is_equal(golden, make)),
        _where(golden.program("bfloat16"), backend),
    ]
    return "| " + " | ".join(cells) + " |"


def encoder_row(name: str, make: MakeExecutor, backend: str) -> str:
    """One line of the encoders' table."""
    golden = encoders.Golden(name)
    exact, rounded = (golden.hidden(make, dtype, {0: golden.tokens})[0] for dtype in ("float32", "bfloat16"))
    error = np.abs(exact - golden.exact).max() / np.abs(golden.exact).max()
    ratio = np.sqrt(
        np.square(rounded - golden.exact).mean() / np.square(golden.rounded - golden.exact).mean()
    )
    beside = golden.hidden(make, "bfloat16", {1: golden.tokens[::-1], 0: golden.tokens})[0]
    is_equal = beside.tobytes() == rounded.tobytes()
    figures = f"{error:.0e} | {ratio:.2f} | {_verdict(is_equal)}"
    return (
        f"| {golden.spec.architecture} | {name} | {figures} | {_where(golden.program('bfloat16'), backend)} |"
    )


def _verdict(is_equal: bool) -> str:
    return "equal" if is_equal else "DIFFERS"


def _argmax(golden: Golden, rounded: np.ndarray) -> str:
    """Of the rows whose margin is clear, those that agree."""
    second, best = np.sort(golden.exact, axis=1)[:, -2:].T
    is_clear = best - second > 4 * np.abs(golden.rounded - golden.exact).max()
    agrees = rounded.argmax(axis=1)[is_clear] == golden.exact.argmax(axis=1)[is_clear]
    return f"{int(agrees.sum())} of {int(is_clear.sum())}"


def _chunks_are_equal(golden: Golden, make: MakeExecutor, dtype: str) -> bool:
    tokens = golden.tokens[:90]
    whole = golden.sequences(make, dtype).run({0: tokens})[0]
    sequences = golden.sequences(make, dtype)
    parts = [sequences.run({1: c[::-1], 0: c})[0] for c in np.split(tokens, [1, 40, 41, 70])]
    return np.concatenate(parts).tobytes() == whole.tobytes()


def _hit_is_equal(golden: Golden, make: MakeExecutor) -> bool:
    program = golden.program("bfloat16")
    executor = make(golden.folder, program)
    shared = Sequences(executor, ((8, 2, 5), (8, 6, 1)), num_groups=len(program.kv_groups))
    shared.run({0: golden.tokens[:BLOCK_SIZE]})
    rest = golden.tokens[BLOCK_SIZE : BLOCK_SIZE + 20]
    miss = shared.run({0: rest})[0]
    shared.lengths[1] = BLOCK_SIZE
    return shared.run({1: rest})[1].tobytes() == miss.tobytes()


def _where(program: Program, backend: str) -> str:
    if backend == "reference":
        return "reference"
    from penstock.backends.cpu.kernels import refusals

    refused = refusals(program)
    return "; ".join(refused) if refused else f"native ({backend})"


def main(arguments: list[str]) -> None:
    asked = [argument for argument in arguments if argument != "--write"]
    names = [name for name in MODELS if name in asked or not asked]
    of_encoders = [name for name in encoders.MODELS if name in asked or not asked]
    best = isas()[0] if isas() else "reference"
    make = reference_executor if best == "reference" else partial(cpu_executor, isa=best)
    rows = sorted(row(name, make, best) for name in names)
    _show(rows, HEADER, BEGIN, END, is_written="--write" in arguments)
    rows = sorted(encoder_row(name, make, best) for name in of_encoders)
    _show(rows, ENCODERS_HEADER, ENCODERS_BEGIN, ENCODERS_END, is_written="--write" in arguments)


def _show(rows: list[str], header: str, begin: str, end: str, *, is_written: bool) -> None:
    """Print a table; put it between its marks in the page."""
    if not rows:
        return
    table = "\n".join([header, *rows])
    print(table)
    if is_written:
        before, _, rest = PAGE.read_text().partition(begin)
        _, _, after = rest.partition(end)
        PAGE.write_text(f"{before}{begin}\n{table}\n{end}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
