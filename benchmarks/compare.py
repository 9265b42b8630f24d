"""penstock beside llama.cpp on one case, interleaved in one run; every row is stored, every bar judged.

    python -m benchmarks.compare llama-1b --llamacpp FOLDER [--gguf FOLDER --gguf-model NAME] [--rounds 5]

FOLDER is what peers/setup_llamacpp.sh made. A round is: the probe, ours, theirs, for each format; ratios are
of medians over rounds, with the range. Speed without a peer in the same minutes is not printed.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.models import make, read_case
from benchmarks.peers.llamacpp import LlamaCpp
from penstock import env
from penstock.backends.cpu.probe import Measured, cpu_name, measure
from penstock.bench.floor import floor_of
from penstock.bench.workload import Bench
from penstock.config import EngineConfig
from penstock.engine.build import load_model

RESULTS = Path(__file__).parent / "results"
FORMATS = {
    "bfloat16": "auto",
    "int8": "int8",
    "int4_g32": "int4_g32",
    "int4_g64": "int4_g64",
    "int4_g128": "int4_g128",
}
MORE_FORMATS = ("float32", "float16")  # by dtype, the second of a checkpoint of its own; decode only
PEER_TYPES = ("BF16", "Q8_0", "Q4_0")

Samples = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case")
    parser.add_argument("--llamacpp", type=Path, required=True, help="folder of peers/setup_llamacpp.sh")
    parser.add_argument("--build", type=Path, help="llama.cpp build folder, if not FOLDER/build")
    parser.add_argument("--gguf", type=Path, help="folder of GGUF files, if not FOLDER/gguf")
    parser.add_argument("--gguf-model", help="their name before -Q4_0.gguf, if not the case's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", default=",".join(FORMATS), help="weight formats of ours")
    options = parser.parse_args()
    case = read_case(options.case)
    folder = make(case, env.cache_dir() / "bench" / case["name"])
    threads = len(os.sched_getaffinity(0))
    peer = LlamaCpp(
        options.build or options.llamacpp / "build",
        options.gguf or options.llamacpp / "gguf",
        options.gguf_model or case["name"],
        threads,
    )
    for format_name in options.formats.split(","):
        samples: dict[str, Samples] = defaultdict(lambda: defaultdict(list))
        ours_of(case, folder, format_name, peer, options.rounds, samples)
        store(
            case, report(case, samples), options.rounds
        )  # one record a format: an interrupted run keeps what it has


def ours_of(
    case: dict[str, Any],
    folder: Path,
    format_name: str,
    peer: LlamaCpp,
    rounds: int,
    samples: dict[str, Samples],
) -> None:
    """One format of ours, loaded once, in turns with the peer's types that it is judged against."""
    load = case["load"]
    if format_name in MORE_FORMATS:
        config = EngineConfig(dtype=format_name, max_requests=32, max_context=2048)
        if format_name == "float16":
            folder = make(case | {"dtype": "float16"}, folder.with_name(f"{folder.name}-float16"))
    else:
        config = EngineConfig(weights=FORMATS[format_name], max_requests=32, max_context=2048)
    loaded = load_model(str(folder), config)
    bench = Bench(loaded)
    bench.decode(1, 32, 4)
    program, plan = loaded.program, loaded.plan
    mine = samples[format_name]
    for _ in range(rounds):
        measured: Measured = measure(plan.isa, plan.threads, repeats=2)
        mine["read_gbps"].append(measured.read_bytes_per_s / 1e9)
        for batch in load["batches"]:
            run = bench.decode(batch, load["context"], load["output_tokens"])
            floor = floor_of(
                program,
                measured,
                num_rows=batch,
                num_logit_rows=batch,
                num_requests=batch,
                context=run.context,
            )
            mine[f"decode_{batch}"].append(run.tokens_per_s)
            mine[f"python_ms_{batch}"].append(1000 * run.python_s)
            mine[f"floor_share_{batch}"].append(floor.seconds / run.forward_s)
            if batch == 1:
                mine["dram_share"].append(floor.bytes / run.forward_s / measured.read_bytes_per_s)
        if format_name.startswith("int4"):
            mine["peer_q4_0"].append(peer.decode("Q4_0", load["context"], load["output_tokens"]))
        if format_name in FORMATS:
            for length in load["prefill"]:
                mine[f"prefill_{length}"].append(length / statistics.median(bench.prefill(length, 1)))
                for kind in judged_types(mine, format_name, length):
                    mine[f"peer_prefill_{length}_{kind}"].append(peer.prefill(kind, length))
    print(
        f"{format_name}: " + ", ".join(f"{k} {statistics.median(v):.3g}" for k, v in mine.items()), flush=True
    )


def own_type(format_name: str) -> str:
    """The peer's type nearest to a format of ours."""
    return {"bfloat16": "BF16", "int8": "Q8_0"}.get(format_name, "Q4_0")


def best_type(mine: Samples, length: int) -> str:
    """The peer's quickest type in the first round, in which all are run."""
    return max(PEER_TYPES, key=lambda kind: mine[f"peer_prefill_{length}_{kind}"][0])


def judged_types(mine: Samples, format_name: str, length: int) -> list[str]:
    if not mine[f"peer_prefill_{length}_{PEER_TYPES[-1]}"]:
        return list(PEER_TYPES)
    return sorted({best_type(mine, length), own_type(format_name)})


def report(case: dict[str, Any], samples: dict[str, Samples]) -> list[dict[str, Any]]:
    """Bars as rows: what, the bar, the ratio, its range over rounds, whether it is met."""
    bars, rows = case["bars"], []

    def row(what: str, bar: float, ratios: list[float]) -> None:
        ratio = statistics.median(ratios)
        rows.append(
            {
                "what": what,
                "bar": bar,
                "ratio": ratio,
                "range": [min(ratios), max(ratios)],
                "met": ratio >= bar,
            }
        )

    for name, mine in samples.items():
        row(
            f"{name}: decode batch 1, share of probed DRAM read",
            bars["decode_share_of_dram"],
            mine["dram_share"],
        )
        row(
            f"{name}: decode batch 8 over batch 1",
            bars["batch8_vs_batch1"],
            [b / a for a, b in zip(mine["decode_1"], mine["decode_8"], strict=True)],
        )
        if mine["peer_q4_0"]:
            pairs = zip(mine["decode_1"], mine["peer_q4_0"], strict=True)
            row(
                f"{name}: decode batch 1 over llama.cpp Q4_0",
                bars["decode_int4_vs_q4_0"],
                [a / b for a, b in pairs],
            )
        for length in case["load"]["prefill"]:
            if not mine[f"prefill_{length}"]:
                continue
            best = best_type(mine, length)
            pairs = zip(mine[f"prefill_{length}"], mine[f"peer_prefill_{length}_{best}"], strict=True)
            row(
                f"{name}: prefill {length} over llama.cpp's best ({best})",
                bars["prefill_vs_peer_best"],
                [a / b for a, b in pairs],
            )
            own = own_type(name)
            pairs = zip(mine[f"prefill_{length}"], mine[f"peer_prefill_{length}_{own}"], strict=True)
            row(
                f"{name}: prefill {length} over llama.cpp {own}",
                bars["prefill_vs_peer_best"],
                [a / b for a, b in pairs],
            )
    width = max(len(r["what"]) for r in rows)
    for r in rows:
        low, high = r["range"]
        print(
            f"{r['what']:{width}}  bar {r['bar']:4.2f}  {r['ratio']:5.2f}  [{low:.2f}, {high:.2f}]  "
            f"{'met' if r['met'] else 'MISSED'}"
        )
    for name, mine in samples.items():
        detail = {
            k: {"median": statistics.median(v), "min": min(v), "max": max(v)} for k, v in mine.items() if v
        }
        rows.append({"what": f"{name}: samples", "samples": detail})
    return rows


def store(case: dict[str, Any], rows: list[dict[str, Any]], rounds: int) -> None:
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "commit": commit,
        "case": case["name"],
        "rounds": rounds, "cpu": cpu_name(), "python": platform.python_version(), "rows": rows,
    }  # fmt: skip
    with (RESULTS / f"{case['name']}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
