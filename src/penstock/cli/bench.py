"""`penstock bench latency|throughput MODEL`: times beside this machine's floor, probed in the same minute.

Ratios are what counts: a shared machine changes its speed from one minute to the next. The last line is JSON.
"""

import argparse
import json
import statistics
from typing import TYPE_CHECKING

from penstock.cli.flags import add_engine_flags, engine_config
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.backends.cpu.probe import Measured
    from penstock.bench.workload import Bench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="latency|throughput", required=True)
    latency = kinds.add_parser("latency", help="one request: prefill by length, decode alone")
    latency.add_argument(
        "--prompt-tokens", type=_counts, default=None, metavar="N,N", help="prompt lengths. Default: 128,512"
    )
    throughput = kinds.add_parser("throughput", help="decode by batch size, Python's part of a step")
    throughput.add_argument(
        "--batch", type=_counts, default=None, metavar="N,N", help="batch sizes. Default: 1,8,32"
    )
    for kind in (latency, throughput):
        kind.add_argument("model", help="a local folder, an embedded name or a Hugging Face id")
        kind.add_argument(
            "--context", type=int, default=128, metavar="N", help="prompt of the decode rows. Default: 128"
        )
        kind.add_argument(
            "--output-tokens", type=int, default=32, metavar="N", help="tokens drawn per request. Default: 32"
        )
        kind.add_argument(
            "--repeats", type=int, default=3, metavar="N", help="runs; the median is printed. Default: 3"
        )
        add_engine_flags(kind)


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if not counts or min(counts) < 1:
        raise ValueError(text)
    return counts


def run(options: argparse.Namespace) -> int:
    from penstock.backends.cpu.probe import measure
    from penstock.bench.workload import Bench
    from penstock.engine.build import load_model

    if min(options.repeats, options.output_tokens, options.context) < 1 or options.output_tokens < 4:
        raise ConfigError(
            "--repeats and --context must be at least 1, --output-tokens at least 4; raise what is below."
        )
    loaded = load_model(options.model, engine_config(options))
    plan = loaded.plan
    bench = Bench(loaded)
    isa = plan.isa or "scalar"
    measured = measure(isa, plan.threads)
    print(
        f"{options.model}: {plan.weight_format} weights, {plan.head_format} head, {isa}, {plan.threads} threads; "
        f"probed {measured.read_bytes_per_s / 1e9:.1f} GB/s, {measured.float32_flops_per_s / 1e12:.2f} TFLOP/s fp32, "
        f"{measured.int8_ops_per_s / 1e12:.2f} TOP/s int8"
    )
    bench.decode(1, min(32, options.context), 4)  # pages, caches and threads wake up
    kind = {"latency": _latency, "throughput": _throughput}[options.kind]
    rows = kind(bench, measured, options)
    print(
        json.dumps(
            {
                "bench": options.kind, "model": options.model, "weights": plan.weight_format, "head": plan.head_format,
                "isa": isa, "threads": plan.threads, "read_bytes_per_s": measured.read_bytes_per_s,
                "float32_flops_per_s": measured.float32_flops_per_s, "int8_ops_per_s": measured.int8_ops_per_s,
                "fingerprint": loaded.fingerprint, "rows": rows,
            }
        )
    )  # fmt: skip
    return 0


def _latency(bench: "Bench", measured: "Measured", options: argparse.Namespace) -> list[dict[str, object]]:
    from penstock.bench.floor import floor_of

    program, plan = bench.loaded.program, bench.loaded.plan
    lengths = options.prompt_tokens or [n for n in (128, 512) if n < plan.max_context]
    rows: list[dict[str, object]] = []
    for length in lengths:
        seconds = statistics.median(bench.prefill(length, options.repeats))
        floor = floor_of(
            program, measured, num_rows=length, num_logit_rows=1, num_requests=1, context=length // 2
        )
        print(
            f"prefill {length:6,} tokens  {1000 * seconds:9.1f} ms  {length / seconds:9.1f} tokens/s  "
            f"{floor.flops / seconds / 1e12:6.3f} TFLOP/s  {floor.seconds / seconds:5.0%} of the {floor.bound} floor"
        )
        rows.append(
            {"metric": "prefill", "tokens": length, "seconds": seconds, "floor_seconds": floor.seconds}
        )
    return rows + _decode_rows(bench, measured, options, [1])


def _throughput(bench: "Bench", measured: "Measured", options: argparse.Namespace) -> list[dict[str, object]]:
    batches = options.batch or [n for n in (1, 8, 32) if n <= bench.loaded.plan.max_requests]
    return _decode_rows(bench, measured, options, batches)


def _decode_rows(
    bench: "Bench", measured: "Measured", options: argparse.Namespace, batches: list[int]
) -> list[dict[str, object]]:
    from penstock.bench.floor import floor_of

    rows: list[dict[str, object]] = []
    for batch in batches:
        runs = [bench.decode(batch, options.context, options.output_tokens) for _ in range(options.repeats)]
        best = sorted(runs, key=lambda run: run.step_s)[len(runs) // 2]
        floor = floor_of(
            bench.loaded.program,
            measured,
            num_rows=batch,
            num_logit_rows=batch,
            num_requests=batch,
            context=best.context,
        )
        print(
            f"decode batch {batch:4}        {1000 * best.step_s:9.2f} ms  {best.tokens_per_s:9.1f} tokens/s  "
            f"{floor.bytes / best.step_s / 1e9:6.1f} GB/s     {floor.seconds / best.step_s:5.0%} of the {floor.bound} floor  "
            f"python {1000 * best.python_s:.2f} ms a step"
        )
        rows.append(
            {
                "metric": "decode", "batch": batch, "context": best.context, "step_seconds": best.step_s,
                "forward_seconds": best.forward_s, "python_seconds": best.python_s, "floor_seconds": floor.seconds,
                "bytes": floor.bytes,
            }
        )  # fmt: skip
    return rows
