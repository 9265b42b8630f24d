"""Writes the tables of docs/benchmarks.md from the stored rows: python -m tools.benchmark_tables.

A table stands between `<!-- rows: NAME -->` and `<!-- end -->`; the text around it is written by people.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from penstock.bench.kernels import FAITHFUL, FORMATS
from penstock.bench.peers import LOGITS, Case, Catalogue, verdicts
from penstock.bench.record import read

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- rows: {} -->", "<!-- end -->"

Row = dict[str, Any]


def last(rows: Iterable[Row], key: Callable[[Row], object]) -> dict[object, Row]:
    """The last row of every key."""
    return {key(row): row for row in rows}


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in rows)


def kernels() -> str:
    """Products of the layers, by format and rows, on the last machine that has rows."""
    rows = read(RESULTS / "kernels.jsonl")
    found = last(
        (r for r in rows if r["kernel"] == "layer linears"),
        lambda r: (r["isa"], str(r["case"]).partition(" rows=")[0], r["rows"]),
    )
    isas = dict.fromkeys(isa for isa, _, _ in found)  # type: ignore[misc]  # keys as made above
    parts = []
    for isa in isas:
        counts = sorted({r["rows"] for r in found.values() if r["isa"] == isa})
        lines = []
        for name in (*FORMATS, *(f"faithful {name}" for name in FAITHFUL)):
            cells = [found.get((isa, name, count)) for count in counts]
            if any(cells):
                lines.append([name, *("" if c is None else _shares(c) for c in cells)])
        some = next(r for r in found.values() if r["isa"] == isa)
        parts.append(
            f"{some['cpu']}, {isa}, {some['threads']} threads, {_dates(found.values(), isa)}; share of the "
            f"probed read / of the {'tile' if isa == 'amx' else 'vector'} unit's peak, by rows:\n\n"
            + table(["format", *(f"M = {count}" for count in counts)], lines)
        )
    return "\n\n".join(parts)


def _shares(row: Row) -> str:
    return f"{row['of_read']:.0%} / {row['of_peak']:.0%}"


def _dates(rows: Iterable[Row], isa: str) -> str:
    days = sorted({str(row["date"])[:10] for row in rows if row["isa"] == isa})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def attention() -> str:
    rows = [r for r in read(RESULTS / "kernels.jsonl") if r["kernel"] == "attention"]
    found = last(rows, lambda r: (r["isa"], r["format"], r["rows"], r["context"]))
    return table(
        ["isa", "keys and values", "rows", "context", "us a call", "GB/s", "of read", "of FMA or tile peak"],
        [
            [r["isa"], r["format"], str(r["rows"]), str(r["context"]), f"{r['us_per_call']:.0f}",
             f"{r['gbps']:.1f}", f"{r['of_read']:.0%}", f"{r['of_peak']:.0%}"]
            for r in found.values()
        ],
    )  # fmt: skip


def sampler() -> str:
    rows = [r for r in read(RESULTS / "kernels.jsonl") if r["case"].startswith("sampler")]
    found = last(rows, lambda r: (r["isa"], r["case"]))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for (isa, _), row in found.items():  # type: ignore[misc]  # keys as made above
        kind, _, name = row["case"].removeprefix("sampler ").partition(": ")
        cells.setdefault((isa, name), {})[kind] = f"{row['us_per_row']:.0f}"
    lines = [
        [isa, name, kinds.get("flat", ""), kinds.get("peaked", "")] for (isa, name), kinds in cells.items()
    ]
    return table(["isa", "parameters", "flat logits, us a row", "peaked"], lines)


def peers(shapes: Callable[[str], bool]) -> str:
    """Every case of these shapes that has rows: its last run, judged by the bar of the machine it ran on."""
    lines = []
    for case, rows in _last_runs():
        if not shapes(case.pair.name):
            continue
        isa = rows[0]["isa"]
        for found in verdicts([case], rows, isa):
            r = found.ratio
            rates = [1 / x if case.workload == "start" else x for x in (found.ours, found.theirs)]
            verdict = "" if found.bar is None else "met" if r.meets(found.bar) else "**missed**"
            judged = "" if found.bar is None else f"{found.bar:.2f} {verdict}"
            read_gbps = statistics.median(row["read_gbps"] for row in rows)
            lines.append(
                [case.pair.name, case.workload, *(f"{rate:.2f}" for rate in rates),
                 f"{r.ratio:.2f} [{r.low:.2f}, {r.high:.2f}]", judged, str(r.num_pairs), isa,
                 f"{read_gbps:.0f}", f"{rows[-1]['date'][:10]} {rows[-1]['commit']}"]
            )  # fmt: skip
    head = ["case", "workload", "ours", "theirs", "ratio [95 %]", "bar", "pairs", "isa", "GB/s probed", "run"]
    return table(head, lines)


def _is_plain(name: str) -> bool:
    return name.startswith(("llama-", "smollm-", "penstock-"))


def memory() -> str:
    lines = []
    for case, rows in _last_runs():
        for side in ("ours", "theirs") if case.workload == "start" else ():
            peak = max(row[f"{side}_pss_bytes"] for row in rows)
            engine = rows[-1][f"{side}_engine"]
            lines.append(
                [case.pair.name, engine["engine"], str(engine["weights"]), f"{peak / 1e9:.2f}",
                 f"{engine['weight_bytes'] / 1e9:.2f}", f"{peak / engine['weight_bytes']:.2f}"]
            )  # fmt: skip
    return table(["pair", "engine", "weights", "peak PSS, GB", "weights, GB", "ratio"], lines)


def logits() -> str:
    lines = []
    for case, rows in _last_runs():
        if case.workload == LOGITS:
            row = rows[-1]
            lines.append(
                [case.pair.name, f"{row['kl_mean']:.1e}", f"{row['kl_max']:.1e}", f"{row['top1']:.1%}",
                 f"{row['rms']:.1e}", f"{row['max_error']:.2g}", str(row["ours_engine"]["head"])]
            )  # fmt: skip
    head = ["case", "KL mean", "KL max", "top-1", "RMS", "largest error", "our head"]
    return table(head, lines)


def _last_runs() -> list[tuple[Case, list[Row]]]:
    stored = read(RESULTS / "peers.jsonl")
    found = []
    for case in Catalogue.read(ROOT / "benchmarks" / "peers", Path()).cases(""):
        own: list[Row] = [row for row in stored if row["case"] == case.name]
        if own:
            found.append((case, [row for row in own if row["run"] == own[-1]["run"]]))
    return found


TABLES: dict[str, Callable[[], str]] = {
    "kernels": kernels,
    "attention": attention,
    "sampler": sampler,
    "peers": lambda: peers(_is_plain),
    "families": lambda: peers(lambda name: not _is_plain(name)),
    "memory": memory,
    "logits": logits,
}


def rewritten(page: str) -> str:
    for name, make in TABLES.items():
        begin = BEGIN.format(name)
        head, _, rest = page.partition(begin)
        assert rest, f"{PAGE.name} has no place for {name}: {begin}"
        page = f"{head}{begin}\n{make()}\n{END}{rest.partition(END)[2]}"
    return page


def main() -> None:
    PAGE.write_text(rewritten(PAGE.read_text()))


if __name__ == "__main__":
    main()
