"""`penstock bench peers`: ours beside llama.cpp, OpenVINO, vLLM and transformers, run by turns.

Each peer lives in an environment of its own, which its script in benchmarks/peers makes (--setup). Rows are
appended as they come; --resume goes on where a run was interrupted, also on another day.
"""

import argparse
import datetime
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.bench_kernels import pattern
from penstock.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from penstock.bench.peers import Case, Catalogue
    from penstock.bench.record import Row

PROBED_BYTES = 512 << 20  # it stays beside two engines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--case", type=pattern, default="", metavar="REGEX", help="only cases in whose name it is found"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases and leave")
    parser.add_argument("--table", action="store_true", help="print what the stored rows say and leave")
    parser.add_argument("--resume", action="store_true", help="go on with the last run of each case")
    parser.add_argument(
        "--blocks", type=int, default=5, metavar="N", help="A-B-B-A blocks, two pairs each. Default: 5"
    )
    parser.add_argument(
        "--setup", action="store_true", help="make the environments of the cases' peers first"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        metavar="DIR",
        help="environments and models. Default: peers in the cache folder",
    )
    parser.add_argument(
        "--benchmarks", type=Path, default=Path("benchmarks"), metavar="DIR", help="Default: ./benchmarks"
    )
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="Default: the physical cores")


def run(options: argparse.Namespace) -> int:
    from penstock import env
    from penstock.bench.peers import Catalogue

    folder = (options.folder or env.cache_dir() / "peers").absolute()
    catalogue = Catalogue.read((options.benchmarks / "peers").absolute(), folder)
    cases = catalogue.cases(options.case)
    if not cases:
        raise ConfigError(f"--case {options.case!r}: no case is called so; --list prints their names.")
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    rows = options.benchmarks / "results" / "peers.jsonl"
    if options.setup:
        _set_up(catalogue, cases)
    if not options.table:
        _measure(catalogue, cases, rows, options)
    _print_table(cases, rows)
    return 0


def _set_up(catalogue: "Catalogue", cases: "list[Case]") -> None:
    for peer in dict.fromkeys(case.pair.peer for case in cases):
        models = dict.fromkeys(case.pair.model for case in cases if case.pair.peer == peer)
        script = catalogue.here / f"setup_{peer}.sh"
        print(f"{script.name}: {', '.join(models)}", flush=True)
        if subprocess.run([str(script), str(catalogue.folder), *models], check=False).returncode:
            raise BackendError(f"{script} failed; see above what it says, mend it and run it again.")


def _measure(catalogue: "Catalogue", cases: "list[Case]", path: Path, options: argparse.Namespace) -> None:
    from penstock import _native, env
    from penstock.backends.cpu.executor import choose_isa
    from penstock.backends.cpu.probe import Probe
    from penstock.bench.peers import LOGITS, Session, environment
    from penstock.bench.record import append, read, stamp
    from penstock.planner.machine import this_machine
    from penstock.weights.arena import reserve

    isa, threads = choose_isa(env.isa()), options.threads or this_machine().cores
    data = reserve(PROBED_BYTES)
    data[::64] = 1
    probe = Probe(_native.Pool(threads), isa, data)
    begun = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    runs: dict[str, str] = {}
    num_done: dict[str, int] = {}
    if options.resume:
        for row in read(path):
            name, run_id = str(row["case"]), str(row["run"])
            num_done[name] = num_done.get(name, 0) + 1 if runs.get(name) == run_id else 1
            runs[name] = run_id
    session = Session(catalogue, isa, threads, probe, catalogue.folder / "engines.log", environment())
    for row in session.run(cases, num_done, options.blocks):
        name = str(row["case"])
        append(path, stamp(isa, threads) | {"run": runs.setdefault(name, begun)} | row)
        if name.endswith(LOGITS):
            print(_distance(row), flush=True)
        else:
            print(f"{name} #{row['index']}: ours {row['ours']:.2f}, theirs {row['theirs']:.2f}", flush=True)


def _print_table(cases: "list[Case]", path: Path) -> None:
    from penstock import env
    from penstock.backends.cpu.executor import choose_isa
    from penstock.bench.peers import LOGITS, verdicts
    from penstock.bench.record import read

    rows = read(path)
    last: dict[object, object] = {row["case"]: row["run"] for row in rows}
    kept: list[Row] = [row for row in rows if row["run"] == last[row["case"]]]
    logits = {case.name for case in cases if case.workload == LOGITS}
    found = verdicts(cases, kept, choose_isa(env.isa()))
    units = "tokens/s, of embed texts/s, of start 1/s"
    print(f"{'case':58} {'ours':>9} {'theirs':>9}  ratio of medians [95 %]; {units}")
    print("\n".join([*map(str, found), *(_distance(row) for row in kept if row["case"] in logits)]))


def _distance(row: "Row") -> str:
    return (
        f"{row['case']:58} KL {row['kl_mean']:.2e} (max {row['kl_max']:.1e})  top-1 {row['top1']:.1%}  "
        f"rms {row['rms']:.2e}  largest error {row['max_error']:.2e}  {row['rows']} rows"
    )
