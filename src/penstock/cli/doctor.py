"""`penstock doctor [MODEL]`: the machine, the build, measured limits, kernels and why; with MODEL, its plan."""

import argparse
import json
import platform
import sys
from importlib.metadata import version

from penstock.cli.flags import add_engine_flags, engine_config
from penstock.planner.machine import this_machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="also plan for this model and explain every choice")
    parser.add_argument(
        "--no-measure", action="store_true", help="skip the two seconds of bandwidth and peak probes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    from penstock import env
    from penstock.backends.cpu.probe import cpu_name, isas, measure

    config = engine_config(options)
    machine = this_machine()
    found = isas()
    report: dict[str, object] = {
        "penstock": version("penstock"),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": machine.cores,
        "memory_bytes": machine.memory_bytes,
        "available_bytes": machine.available_bytes,
        "native": bool(found),
        "isas": [isa for isa in found if isa != "amx_emulated"],
    }
    lines = [
        f"penstock {report['penstock']}, Python {report['python']}, {platform.system()} {platform.machine()}",
        f"cpu      {report['cpu']}, {machine.cores} cores for this process",
        f"memory   {machine.available_bytes / 1e9:.1f} GB free of {machine.memory_bytes / 1e9:.1f} GB",
    ]
    if not found:
        lines.append(
            "native   none: built without a C++ compiler, so models run on the numpy reference, slowly. "
            "Install g++ 12 or clang 14 and reinstall penstock."
        )
    else:
        from penstock.backends.cpu.executor import choose_isa

        isa = choose_isa(env.isa())
        report["isa"] = isa
        why = "PENSTOCK_ISA asks for it" if env.isa() else "the best this machine has"
        lines.append(
            f"native   {isa} ({why}); also {', '.join(i for i in found if i not in (isa, 'amx_emulated'))}"
        )
        if not options.no_measure:
            threads = machine.cores if config.threads == "auto" else config.threads
            measured = measure(isa, threads)
            report |= {
                "read_bytes_per_s": measured.read_bytes_per_s,
                "float32_flops_per_s": measured.float32_flops_per_s,
                "int8_ops_per_s": measured.int8_ops_per_s,
            }
            lines += [
                f"measured {measured.read_bytes_per_s / 1e9:.1f} GB/s from memory, "
                f"{measured.float32_flops_per_s / 1e12:.2f} TFLOP/s fp32, "
                f"{measured.int8_ops_per_s / 1e12:.2f} TOP/s int8, {threads} threads, now",
            ]
    if options.model:
        from penstock.engine.build import load_model

        loaded = load_model(options.model, config)
        plan = loaded.plan
        report["plan"] = {name: getattr(plan, name) for name in plan.__struct_fields__}
        report["fingerprint"] = loaded.fingerprint
        lines.append(f"\nplan for {options.model} ({loaded.fingerprint})")
        for name in plan.__struct_fields__:
            if name != "reasons":
                reason = plan.reasons.get(name)
                lines.append(
                    f"  {name:16} {_text(getattr(plan, name)):>22}" + (f"   {reason}" if reason else "")
                )
        lines.append(
            f"  {'label':16} {'faithful' if plan.is_faithful else 'lossy':>22}   of the checkpoint's weights"
        )
        lines += [f"note: {note}" for note in loaded.notes]
    if options.json:
        json.dump(report, sys.stdout, default=dict)
        print()
    else:
        print("\n".join(lines))
    return 0


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{v:,}" for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
