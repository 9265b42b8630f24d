"""`penstock doctor [MODEL]`: machine, build, measured limits; with MODEL, its plan and kernels, and why."""

import argparse
import json
import platform
import sys
from collections import Counter
from typing import TYPE_CHECKING

from penstock.cli.flags import add_engine_flags, engine_config
from penstock.env import penstock_version
from penstock.kv.groups import most_requests
from penstock.planner.machine import Machine, this_machine

if TYPE_CHECKING:
    from penstock.config import EngineConfig
    from penstock.engine.build import Loaded

NO_NATIVE = (
    "none: this install has no native kernels, so models run on the numpy reference, which is right and "
    "slow. Install a C++20 compiler (g++ 12 or clang 14 and newer) and reinstall penstock."
)
Report = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="also plan for this model and explain every choice")
    parser.add_argument(
        "--no-measure", action="store_true", help="skip the seconds that bandwidth and peak probes take"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    config = engine_config(options)
    machine = this_machine()
    report: Report = {}
    lines = _machine(report, machine)
    lines += _native(report, machine, config, with_measures=not options.no_measure)
    if options.model:
        from penstock.engine.build import load_model

        loaded = load_model(options.model, config)
        lines += ["", *_plan(report, loaded), "", *_kernels(report, loaded), "", *_memory(loaded, machine)]
        lines += [f"note: {note}" for note in loaded.notes]
    if options.json:
        json.dump(report, sys.stdout, default=dict)
        print()
    else:
        print("\n".join(lines))
    return 0


def _machine(report: Report, machine: Machine) -> list[str]:
    from penstock.backends.cpu.probe import cpu_name

    report |= {
        "penstock": penstock_version(),
        "python": platform.python_version(),
        "cpu": cpu_name() if cpu_name() != "unknown" else platform.machine(),
        "cores": machine.cores,
        "memory_bytes": machine.memory_bytes,
        "available_bytes": machine.available_bytes,
    }
    return [
        f"penstock {report['penstock']}, Python {report['python']}, {platform.system()} {platform.machine()}",
        f"cpu      {report['cpu']}, {machine.cores} cores for this process",
        f"memory   {_size(machine.available_bytes)} free of {_size(machine.memory_bytes)}",
    ]


def _native(report: Report, machine: Machine, config: "EngineConfig", *, with_measures: bool) -> list[str]:
    """The instruction sets that build and machine have, the one that is used, and its limits just now."""
    from penstock import env
    from penstock.backends.cpu.probe import dropped_isa, isas, measure

    found = [isa for isa in isas() if isa != "amx_emulated"]  # that one is for tests
    report |= {"native": bool(found), "isas": found}
    if not found:
        return [f"native   {NO_NATIVE}"]
    from penstock.backends.cpu.executor import choose_isa

    isa = choose_isa(env.isa())
    report["isa"] = isa
    why = "PENSTOCK_ISA asks for it" if env.isa() else "the best that this build and this machine have"
    others = ", ".join(other for other in found if other != isa)
    lines = [f"native   {isa}: {why}" + (f"; also here: {others}" if others else "")]
    if dropped := dropped_isa():
        report["dropped_isa"] = dropped
        lines.append(f"dropped  {dropped}")
    if with_measures:
        threads = machine.cores if config.threads == "auto" else config.threads
        measured = measure(isa, threads)
        report |= {
            "read_bytes_per_s": measured.read_bytes_per_s,
            "float32_flops_per_s": measured.float32_flops_per_s,
            "int8_ops_per_s": measured.int8_ops_per_s,
        }
        lines.append(
            f"measured {measured.read_bytes_per_s / 1e9:.1f} GB/s from memory, "
            f"{measured.float32_flops_per_s / 1e12:.3f} TFLOP/s fp32, "
            f"{measured.int8_ops_per_s / 1e12:.3f} TOP/s int8, {threads} threads, just now"
        )
    return lines


def _plan(report: Report, loaded: "Loaded") -> list[str]:
    plan = loaded.plan
    report["plan"] = {name: getattr(plan, name) for name in plan.__struct_fields__}
    report["fingerprint"] = loaded.fingerprint
    promise = "faithful" if plan.is_faithful else "lossy"
    lines = [f"plan for {loaded.name}: {promise}, fingerprint {loaded.fingerprint}"]
    for name in plan.__struct_fields__:
        if name not in ("reasons", "is_faithful"):
            reason = plan.reasons.get(name, "")
            lines.append(f"  {name:16} {_text(getattr(plan, name)):>22}   {reason}".rstrip())
    return lines


def _kernels(report: Report, loaded: "Loaded") -> list[str]:
    """What runs each op of the program, once per op and weight format."""
    plan, program = loaded.plan, loaded.program
    count: Counter[tuple[str, str]] = Counter()
    for call in program.calls:
        uses = (program.weights.get(str(name).removeprefix("weights.")) for name in call.inputs)
        formats = [use.format for use in uses if use is not None and use.format is not None]
        count[call.op.name, formats[0] if formats else ""] += 1
    where = f"native, {plan.isa}" if plan.backend == "cpu" else "numpy reference"
    report["kernels"] = [
        {"op": op, "weight_format": weight_format or None, "calls": calls, "runs_on": where}
        for (op, weight_format), calls in count.items()
    ]
    lines = [f"kernels: {where}; arithmetic {plan.contract}; {plan.reasons['backend']}"]
    for (op, weight_format), calls in count.items():
        lines.append(f"  {op:18} {weight_format:10} {calls:5} calls a step")
    return lines


def _memory(loaded: "Loaded", machine: Machine) -> list[str]:
    plan = loaded.plan
    num_requests = most_requests(
        loaded.spec.kv_groups(),
        plan.num_kv_blocks,
        num_tokens=plan.max_context,
        block_size=plan.block_size,
    )
    free = machine.available_bytes
    return [
        f"memory: weights {_size(plan.weight_bytes)}, keys and values up to {_size(plan.kv_bytes)} "
        f"of the {_size(free)} that were free",
        f"  the cache holds {num_requests:,} requests of {plan.max_context:,} tokens, more if they are "
        f"shorter; at most {plan.max_requests} run in one step, the others wait",
    ]


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{v:,}" for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
