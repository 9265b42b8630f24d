"""`penstock bench kernels`: every kernel x format x rows beside the limits probed in the same moments.

With --profile, the whole step of each case instead, kernel by kernel. Needs the native build, no model.
"""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from penstock.bench.kernels import Case, Row, Timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--filter",
        type=pattern,
        default="",
        metavar="REGEX",
        help="only cases in whose name it is found: '^int4_g64 rows=(1|8)$'",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases and leave")
    parser.add_argument("--profile", action="store_true", help="show where a whole step's time goes, per op")
    parser.add_argument("--json", action="store_true", help="print rows as JSON lines")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the rows to FILE, as JSON lines")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="steps per case. Default: 9")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="Default: the physical cores")


def pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def run(options: argparse.Namespace) -> int:
    from penstock import env
    from penstock.backends.cpu.probe import cpu_name, isas
    from penstock.bench.record import append, stamp
    from penstock.planner.machine import this_machine

    if not isas():
        raise BackendError("no native build: no kernels to time. Install a C++20 compiler and reinstall.")
    if options.repeats < 1:
        raise ConfigError(f"--repeats is {options.repeats}; at least one step must be timed.")
    from penstock.backends.cpu.executor import choose_isa
    from penstock.bench.kernels import KernelBench, cases, rows_of

    wanted = cases(options.filter)
    if not wanted:
        raise ConfigError(f"--filter {options.filter!r}: no case is called so; --list prints their names.")
    if options.list:
        print("\n".join(case.name for case in wanted))
        return 0
    isa, threads = choose_isa(env.isa()), options.threads or this_machine().cores
    if not options.json:
        print(f"{cpu_name()}, {isa}, {threads} threads; each step between two probes, medians of shares")
    for case, timed in KernelBench(isa, threads, options.repeats).run(wanted):
        rows = [stamp(isa, threads) | row for row in rows_of(case, timed)]
        for row in rows if options.out else []:
            append(options.out, row)
        if options.json:
            print("\n".join(json.dumps(row) for row in rows), flush=True)
        else:
            print("\n".join(_profile(case, timed) if options.profile else _lines(case, rows)), flush=True)
    return 0


def _lines(case: "Case", rows: "list[Row]") -> list[str]:
    lines = [case.name]
    for row in rows:
        rates = [f"{row['us_per_call']:12.1f} us a call x {row['calls']:3}"]
        if "us_per_row" in row:
            rates.append(f"{row['us_per_row']:7.1f} us a row")
        if "gbps" in row:
            rates.append(f"{row['gbps']:7.2f} GB/s {row['of_read']:6.1%} of read")
        if "gops" in row:
            rates.append(f"{row['gops']:8.1f} GOP/s {row['of_peak']:6.1%} of {row['unit']}")
        lines.append(f"  {row['kernel']:24} {'  '.join(rates)}")
    return lines


def _profile(case: "Case", timed: "Timed") -> list[str]:
    from penstock.bench.breakdown import report

    return [case.name, *(f"  {line}" for line in report(timed.kernels, timed.ns, timed.around[0]))]
