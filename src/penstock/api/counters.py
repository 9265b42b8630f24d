"""Counts of HTTP answers for /metrics. Labels are of our own route table, never what a client typed."""

from collections import Counter


class Counters:
    """Bounded by routes x methods we know x statuses we send, whatever is requested."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self.num_open_streams = 0

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        self._answers[(route, method if method in METHODS else "other", status)] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]  # Counter adds floats as well

    def render(self) -> str:
        lines = [
            "# HELP penstock_http_requests_total Answers by route, method and status (499: client left).",
            "# TYPE penstock_http_requests_total counter",
        ]
        for (route, method, status), count in sorted(self._answers.items()):
            labels = f'route="{route}",method="{method}",status="{status}"'
            lines.append(f"penstock_http_requests_total{{{labels}}} {count}")
        lines += [
            "# HELP penstock_http_seconds_total Time from a request's head to the end of its answer.",
            "# TYPE penstock_http_seconds_total counter",
        ]
        lines += [
            f'penstock_http_seconds_total{{route="{r}"}} {s:.6f}' for r, s in sorted(self._seconds.items())
        ]
        lines += [
            "# HELP penstock_http_open_streams Event streams that are being written.",
            "# TYPE penstock_http_open_streams gauge",
            f"penstock_http_open_streams {self.num_open_streams}",
        ]
        return "\n".join(lines) + "\n"


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
