"""A day's requests, from both sides of the wire: does a process grow?

    python -m benchmarks.leaks [--part engine|front] [--requests 475000] [--out FILE]

The soak has too few requests in twenty minutes to tell a slow leak from an allocator that settles. Here are
all of a day: through the engine's loop (engine_day.py), and through a server with the engine behind it
(front_day.py). Without --part, one after the other; each takes about a quarter of an hour. Prints memory now
and then; exits 1 beyond the rule of slope.py, or where the server did not give something back.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks import engine_day, front_day, slope
from penstock.bench import record

PARTS = {"engine": engine_day.ask_for_a_day, "front": front_day.ask_for_a_day}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="default: both")
    parser.add_argument("--requests", type=int, default=slope.TRACE_DAY_REQUESTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.jsonl"))
    args = parser.parse_args()
    is_sound = True
    for part in [args.part] if args.part else PARTS:
        row: record.Row = {"case": "leaks", "part": part, "requests": args.requests, "seed": args.seed}
        row |= record.stamp("auto", 1)
        began_s = time.monotonic()
        passes = row["passes"] = PARTS[part](args.requests, args.seed, row)
        row["seconds"] = round(time.monotonic() - began_s)
        record.append(args.out, row)
        print(f"{part}: {'passes' if passes else 'FAILS'}")
        is_sound &= passes
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
