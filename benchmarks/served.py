"""`penstock serve` as its users start it, and what the system says of its two processes.

Used by the long scripts (soak, fuzz_http, overload, streams) and by the tests that need the real thing.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

START_S = 120.0


def resident_bytes(process: psutil.Process) -> int:
    """Counted page by page: the running total that others show is off by up to 32 pages for each core.

    ProcessLookupError: it has ended.
    """
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    raise ProcessLookupError(process.pid)


class Served:
    """A running server. `front` is its process; `engine()` the engine's, which changes when it is killed."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.log = log
        self.front = psutil.Process(process.pid)

    def engine(self) -> psutil.Process | None:
        """None while there is none."""
        for child in self.front.children():
            with contextlib.suppress(psutil.Error):
                if "penstock.engine.process" in child.cmdline():
                    return child
        return None

    def kill_engine(self) -> bool:
        """With SIGKILL. False: there is none, for the next one has not come."""
        engine = self.engine()
        if engine is not None:
            engine.kill()
        return engine is not None

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    def is_ready(self) -> bool:
        try:
            self.get("/ready")
        except (urllib.error.URLError, OSError):
            return False
        return True

    def gauges(self) -> dict[str, float]:
        """Every sample of /metrics that has no alias's name, by name and labels."""
        lines = (line for line in self.get("/metrics").splitlines() if line.startswith("penstock_"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def holdings(self) -> dict[str, float]:
        """What must be given back when nobody asks any more."""
        gauges = self.gauges()
        names = ("requests_running", "requests_waiting", "requests_waiting_bytes", "kv_usage_ratio")
        held = {name: gauges[f"penstock_{name}"] for name in names}
        held["http_open_streams"] = gauges["penstock_http_open_streams"]
        held["log_lines_dropped"] = gauges["penstock_log_lines_dropped_total"]
        engine = self.engine()
        for name, process in (("front", self.front), ("engine", engine)):
            if process is not None:
                held[f"{name}_fds"] = process.num_fds()
                held[f"{name}_threads"] = process.num_threads()
        held["children"] = len(self.front.children())
        held["sockets"] = len(self.front.net_connections("tcp"))
        return held

    def complaints(self) -> list[str]:
        """Lines of its log that tell of a defect."""
        words = ("Traceback", '"event": "defect"')
        return [line for line in self.log.read_text().splitlines() if any(word in line for word in words)]


@contextlib.contextmanager
def served(
    *flags: str, config: str = "", model: str = "penstock-tiny", env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """The server, ready; `config` is the text of its TOML file. It must leave with 0 when it is done."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "penstock.cli.main", "serve", model, "--port", "0", "--threads", "1"]
        if config:
            (Path(folder) / "serve.toml").write_text(config)
            command += ["--config", str(Path(folder) / "serve.toml")]
        with log.open("w") as errors:
            process = subprocess.Popen(
                [*command, *flags], stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, **(env or {})},
            )  # fmt: skip
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found, log.read_text()[-2000:]
            yield Served(process, found[0], log)
            process.terminate()
            code = process.wait(60)
            assert code == 0, f"the server left with {code}"
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def wait_until_idle(server: Served, base: Mapping[str, float], timeout_s: float) -> dict[str, float]:
    """Holdings, as soon as they are those of `base`; as they are, when the time is over."""
    end_s = time.monotonic() + timeout_s
    while True:
        held = server.holdings()
        if held == base or time.monotonic() > end_s:
            return held
        time.sleep(0.5)
