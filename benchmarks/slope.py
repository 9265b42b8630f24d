"""How a process grew, as a line with its upper bound; and what a day of the trace would make of that.

The rule, for soak and leaks: after a warm-up of a quarter, the upper 95 % bound of the slope, drawn out to
the 475,000 requests of a day of azure-conv-23, is at most 1 % of the memory; and 8 MiB are never added.
A quarter of such a day is the warm-up that the rule means: allocators settle slowly. Fewer requests than that
are not judged by it, which is said aloud; benchmarks/leaks.py has them all.
"""

import itertools
import math
import statistics
from collections.abc import Sequence

TRACE_DAY_REQUESTS = 475_000  # what that service was asked in 24 h
WARM_SHARE = 0.25
MAX_GROWTH_BYTES = 8 << 20
MAX_DAILY_SHARE = 0.01
GROUPS = 12  # stretches whose means are fitted: neighbours in time are alike, and one sample says nothing new
T_95 = 2.23  # of the two-sided interval, for GROUPS - 2 degrees of freedom
Point = tuple[float, float]  # (requests so far, bytes)


def fit(points: Sequence[Point]) -> tuple[float, float]:
    """Bytes per request, and the upper 95 % bound of that: a line through the means of stretches.

    >>> fit([(n, 100 + 2 * n) for n in range(240)])
    (2.0, 2.0)
    """
    cuts = [len(points) * i // GROUPS for i in range(GROUPS + 1)]
    stretches = [points[a:b] for a, b in itertools.pairwise(cuts)]
    means = [(statistics.mean(x for x, _ in one), statistics.mean(y for _, y in one)) for one in stretches]
    xs, ys = zip(*means, strict=True)
    slope, start = statistics.linear_regression(xs, ys)
    middle = statistics.mean(xs)
    spread = sum((x - middle) ** 2 for x in xs)
    error = sum((y - start - slope * x) ** 2 for x, y in means) / (GROUPS - 2)
    return slope, slope + T_95 * math.sqrt(error / spread)


def warm(points: Sequence[Point]) -> list[Point]:
    """Without the first quarter, counted in requests."""
    first, last = points[0][0], points[-1][0]
    return [point for point in points if point[0] >= first + WARM_SHARE * (last - first)]


def judge(name: str, points: Sequence[Point], row: dict[str, object]) -> bool | None:
    """Say how it grew and write it to the row; whether that is within the rule. None: too few requests."""
    kept = warm(points)
    slope, upper = fit(kept)
    start = statistics.mean(y for _, y in kept[: max(1, len(kept) // GROUPS)])
    num_requests = kept[-1][0] - kept[0][0]
    grown = slope * num_requests
    daily, at_most = slope * TRACE_DAY_REQUESTS / start, upper * TRACE_DAY_REQUESTS / start
    row[f"{name}_rss"] = {
        "start_bytes": round(start), "num_requests": num_requests, "grown_bytes": round(grown),
        "bytes_per_request": slope, "upper_bytes_per_request": upper, "daily_share": daily,
        "upper_daily_share": at_most,
    }  # fmt: skip
    print(
        f"{name}: {start / 2**20:.1f} MiB, {grown / 2**10:+,.0f} KiB in {num_requests:,.0f} requests after "
        f"the first quarter; a day of {TRACE_DAY_REQUESTS:,}: {daily:+.2%}, at most {at_most:+.2%} (bound "
        f"{MAX_DAILY_SHARE:.0%})"
    )
    if grown > MAX_GROWTH_BYTES:
        return False
    if at_most > MAX_DAILY_SHARE and points[-1][0] - points[0][0] < WARM_SHARE * TRACE_DAY_REQUESTS:
        print(f"{name}: fewer requests than a day's warm-up: not judged by the slope")
        return None
    return at_most <= MAX_DAILY_SHARE
