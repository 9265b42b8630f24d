"""`penstock bench latency|throughput MODEL`: times beside this machine's floor, probed in the same minute.

Ratios are what counts: a shared machine changes its speed from one minute to the next. The last line is JSON.
The other kinds are in files of their own.
"""

import argparse
import json
import statistics
from typing import TYPE_CHECKING

from penstock.cli import bench_kernels, bench_peers, bench_quality
from penstock.cli.flags import add_engine_flags, engine_config
from penstock.errors import ConfigError, ContextLengthError
from penstock.kv.groups import most_requests

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from penstock.backends.cpu.probe import Measured
    from penstock.bench.breakdown import Shape
    from penstock.bench.floor import Floor
    from penstock.bench.workload import Bench, Decode

MIN_OUTPUT_TOKENS = 4  # fewer leave no step between the first and the last
Row = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(
        dest="kind", metavar="latency|throughput|kernels|peers|quality", required=True
    )
    latency = kinds.add_parser("latency", help="one request: prefill by length, decode alone")
    latency.add_argument(
        "--prompt-tokens", type=counts, default=None, metavar="N,N", help="prompt lengths. Default: 128,512"
    )
    throughput = kinds.add_parser("throughput", help="decode by batch size, Python's part of a step")
    throughput.add_argument(
        "--batch", type=counts, default=None, metavar="N,N", help="batch sizes. Default: 1,8,32"
    )
    for kind in (latency, throughput):
        kind.add_argument("model", help="a local folder, an embedded name or a Hugging Face id")
        kind.add_argument(
            "--context", type=count, default=128, metavar="N", help="prompt of the decode rows. Default: 128"
        )
        kind.add_argument(
            "--output-tokens",
            type=count,
            default=32,
            metavar="N",
            help="tokens drawn per request. Default: 32",
        )
        kind.add_argument(
            "--repeats", type=count, default=3, metavar="N", help="runs; the median is printed. Default: 3"
        )
        kind.add_argument("--profile", action="store_true", help="show where a step's time goes, per op")
        add_engine_flags(kind)
    bench_kernels.add_arguments(kinds.add_parser("kernels", help="each kernel beside the machine's limits"))
    bench_quality.add_arguments(kinds.add_parser("quality", help="what each lossy setting costs a model"))
    bench_peers.add_arguments(
        kinds.add_parser("peers", help="beside other engines, by turns (needs a checkout)")
    )


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= len(text) <= 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no count; give a whole number from 1 up")
    return int(text)


def counts(text: str) -> list[int]:
    """
    >>> counts("1,8")
    [1, 8]
    """
    return [count(part) for part in text.split(",")]


def run(options: argparse.Namespace) -> int:
    if options.kind == "kernels":
        return bench_kernels.run(options)
    if options.kind == "peers":
        return bench_peers.run(options)
    if options.kind == "quality":
        return bench_quality.run(options)
    from penstock.backends.cpu.probe import measure
    from penstock.bench.workload import Bench
    from penstock.engine.build import load_model

    if options.output_tokens < MIN_OUTPUT_TOKENS:
        raise ConfigError(
            f"--output-tokens is {options.output_tokens}; fewer than {MIN_OUTPUT_TOKENS} leave no whole "
            "step to time. Raise it."
        )
    loaded = load_model(options.model, engine_config(options))
    plan = loaded.plan
    if plan.backend != "cpu":
        raise ConfigError(
            f"the {plan.backend} backend has no floor to be measured against: {plan.reasons['backend']}. "
            "Use the cpu backend."
        )
    bench = Bench(loaded)
    _check_room(bench, options)
    measured = measure(plan.isa, plan.threads)
    print(
        f"{options.model}: {plan.weight_format} weights, {plan.head_format} head, {plan.isa}, "
        f"{plan.threads} threads; probed {measured.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"{measured.float32_flops_per_s / 1e12:.3f} TFLOP/s fp32, "
        f"{measured.int8_ops_per_s / 1e12:.3f} TOP/s int8"
    )
    bench.decode(1, min(32, options.context), MIN_OUTPUT_TOKENS)  # pages, caches and threads wake up
    rows = {"latency": _latency, "throughput": _throughput}[options.kind](bench, measured, options)
    if any(row["floor_ratio"] > 1 for row in rows):  # type: ignore[operator]  # a float
        print("above 100%: weights that stay in caches, or a machine that was slower when it was probed.")
    print(
        json.dumps(
            {
                "bench": options.kind, "model": options.model, "weights": plan.weight_format,
                "head": plan.head_format, "isa": plan.isa, "threads": plan.threads,
                "read_bytes_per_s": measured.read_bytes_per_s,
                "float32_flops_per_s": measured.float32_flops_per_s,
                "int8_ops_per_s": measured.int8_ops_per_s,
                "fingerprint": loaded.fingerprint, "rows": rows,
            }
        )
    )  # fmt: skip
    return 0


def _check_room(bench: "Bench", options: argparse.Namespace) -> None:
    """Refuse what would not run as asked: a row that is cut, queued or preempted measures something else."""
    plan = bench.loaded.plan
    if options.kind == "latency":
        batches = [1]
        longest = max(_prompt_lengths(bench, options), default=0) + 1
    else:
        batches = _batches(bench, options)
        longest = 0
    num_drawn = options.output_tokens + max(bench.num_prefill_steps(b, options.context) for b in batches)
    longest = max(longest, options.context + num_drawn)
    if longest > plan.max_context:
        raise ContextLengthError(
            f"the longest row needs {longest:,} tokens; the context holds {plan.max_context:,}. "
            "Ask for fewer."
        )
    if max(batches) > plan.max_requests:
        raise ConfigError(
            f"--batch {max(batches)} is above max_requests={plan.max_requests}, so requests would queue. "
            "Raise --max-requests or ask for a smaller batch."
        )
    num_tokens = options.context + num_drawn
    groups = bench.loaded.spec.kv_groups()
    most = most_requests(groups, plan.num_kv_blocks, num_tokens=num_tokens, block_size=plan.block_size)
    if max(batches) > most:
        raise ConfigError(
            f"the cache holds {most:,} requests of {num_tokens:,} tokens, {max(batches):,} are asked for, so "
            "requests would be preempted. Ask for less or raise --memory-bytes."
        )


def _prompt_lengths(bench: "Bench", options: argparse.Namespace) -> list[int]:
    return options.prompt_tokens or [n for n in (128, 512) if n < bench.loaded.plan.max_context]


def _batches(bench: "Bench", options: argparse.Namespace) -> list[int]:
    return options.batch or [n for n in (1, 8, 32) if n <= bench.loaded.plan.max_requests]


def _latency(bench: "Bench", measured: "Measured", options: argparse.Namespace) -> list[Row]:
    from penstock.bench.breakdown import Shape
    from penstock.bench.floor import floor_of

    rows: list[Row] = []
    for length in _prompt_lengths(bench, options):
        seconds = statistics.median(bench.prefill(length, options.repeats))
        floor = floor_of(
            bench.loaded.program,
            measured,
            num_rows=length,
            num_logit_rows=1,
            num_requests=1,
            context=length // 2,
        )
        print(
            f"prefill {length:6,} tokens  {1000 * seconds:9.2f} ms  {length / seconds:10.1f} tokens/s  "
            f"{floor.flops / seconds / 1e12:7.3f} TFLOP/s  {_of_floor(floor, seconds)}"
        )
        rows.append(
            {
                "metric": "prefill", "tokens": length, "seconds": seconds, "floor_seconds": floor.seconds,
                "floor_bound": floor.bound, "floor_ratio": floor.seconds / seconds,
            }
        )  # fmt: skip
        if options.profile:
            ns = bench.profile_prefill(length)
            _print_profile(bench, measured, Shape(length, 1, 1, length // 2), ns)
    return rows + _decode_rows(bench, measured, options, [1])


def _throughput(bench: "Bench", measured: "Measured", options: argparse.Namespace) -> list[Row]:
    return _decode_rows(bench, measured, options, _batches(bench, options))


def _decode_rows(
    bench: "Bench", measured: "Measured", options: argparse.Namespace, batches: list[int]
) -> list[Row]:
    from penstock.bench.breakdown import Shape
    from penstock.bench.floor import floor_of

    rows: list[Row] = []
    for batch in batches:
        runs = [bench.decode(batch, options.context, options.output_tokens) for _ in range(options.repeats)]
        middle: Decode = sorted(runs, key=lambda run: run.step_s)[len(runs) // 2]
        floor = floor_of(
            bench.loaded.program,
            measured,
            num_rows=batch,
            num_logit_rows=batch,
            num_requests=batch,
            context=middle.context,
        )
        print(
            f"decode batch {batch:4}         {1000 * middle.step_s:9.2f} ms  {middle.tokens_per_s:10.1f} "
            f"tokens/s  {floor.bytes / middle.step_s / 1e9:7.2f} GB/s     {_of_floor(floor, middle.step_s)}  "
            f"python {1000 * middle.python_s:.2f} ms a step"
        )
        rows.append(
            {
                "metric": "decode", "batch": batch, "context": middle.context, "step_seconds": middle.step_s,
                "forward_seconds": middle.forward_s, "python_seconds": middle.python_s,
                "floor_seconds": floor.seconds, "floor_bound": floor.bound,
                "floor_ratio": floor.seconds / middle.step_s, "bytes": floor.bytes,
            }
        )  # fmt: skip
        if options.profile:
            ns = bench.profile_decode(batch, options.context, options.output_tokens)
            _print_profile(bench, measured, Shape(batch, batch, batch, middle.context), ns)
    return rows


def _print_profile(bench: "Bench", measured: "Measured", shape: "Shape", ns: "NDArray[np.int64]") -> None:
    from penstock.bench.breakdown import kernels_of, report

    kernels = kernels_of(bench.loaded.program, shape, bench.loaded.plan.isa)
    print("\n".join(f"    {line}" for line in report(kernels, ns, measured)))


def _of_floor(floor: "Floor", seconds: float) -> str:
    return f"{floor.seconds / seconds:5.0%} of the {floor.bound} floor"
