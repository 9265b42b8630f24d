"""Throughput over HTTP: ours beside our own engine in process, or beside another server, by turns.

    python -m benchmarks.serving MODEL --clients 32 --input 32 --output 128            # what the server costs
    python -m benchmarks.serving MODEL --weights int4 --clients 8 --input 256 --output 64 --requests 32 \\
        --peer 'llama-server -m model.gguf -t 2 -np 8 -cb -c 4096 --port 8091' --peer-url http://127.0.0.1:8091

Closed loop: each client sends its next request when it has the whole answer to the last. Prompts are random
token ids, so that no prefix cache helps; ours is switched off besides. The server that waits is stopped
(SIGSTOP). Prints every round, then medians and their ratio; --out appends a row.
"""

import argparse
import asyncio
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from penstock.bench.record import append, stamp

OURS_URL = "http://127.0.0.1:8390"
VOCAB = 400  # ids that every tokenizer has
READY_TIMEOUT_S = 600.0
OPTIONS = {"prefix_cache": False, "max_context": 1024, "seed": 1}


@dataclass(frozen=True, slots=True)
class Load:
    clients: int
    requests: int
    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Served:
    """`total_tps` counts prompt and answer tokens, `output_tps` answers alone."""

    total_tps: float
    output_tps: float
    ttft_mean_ms: float
    ttft_p95_ms: float


def prompts(load: Load, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(5, VOCAB) for _ in range(load.input)] for _ in range(load.requests)]


async def ask(url: str, model: str, prompt: Sequence[int], max_tokens: int) -> tuple[float, int]:
    """Seconds to the first event, and tokens answered."""
    host = urlsplit(url)
    body = json.dumps(
        {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
         "stream": True, "stream_options": {"include_usage": True}}
    ).encode()  # fmt: skip
    reader, writer = await asyncio.open_connection(host.hostname, host.port, limit=1 << 20)
    began_s = time.perf_counter()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{url}: {status!r} {(await reader.read(2000))[-600:]!r}")
    first_s, usage = 0.0, b""
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            first_s = first_s or time.perf_counter()
            if b'"usage":{' in line:
                usage = line
    writer.close()
    return first_s - began_s, int(json.loads(usage[6:])["usage"]["completion_tokens"])


async def over_http(url: str, model: str, load: Load, seed: int) -> Served:
    waiting = prompts(load, seed)
    answers: list[tuple[float, int]] = []

    async def client() -> None:
        while waiting:
            answers.append(await ask(url, model, waiting.pop(), load.output))

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(load.clients)))
    return summary(load, answers, time.perf_counter() - began_s)


def summary(load: Load, answers: Sequence[tuple[float, int]], taken_s: float) -> Served:
    ttft = sorted(1e3 * first for first, _ in answers)
    output = sum(count for _, count in answers)
    total = output + load.input * len(answers)
    p95 = ttft[min(len(ttft) - 1, int(0.95 * len(ttft)))]
    return Served(total / taken_s, output / taken_s, statistics.mean(ttft), p95)


class Server:
    """A server process that runs only while it is measured."""

    def __init__(self, command: Sequence[str], url: str, model: str, log: Path) -> None:
        self._url, self._model = url, model
        with log.open("ab") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{command[0]} does not serve; see {log}")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        for path in ("/ready", "/health"):
            try:
                with urllib.request.urlopen(self._url + path, timeout=2) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.HTTPError, urllib.error.URLError, OSError):
                continue
        return False

    def measure(self, load: Load, seed: int) -> Served:
        return asyncio.run(over_http(self._url, self._model, load, seed))

    def signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        self._process.wait(60)


class InProcess:
    def __init__(self, model: str, weights: str) -> None:
        from penstock import LLM

        self._llm = LLM(model, **OPTIONS, weights=weights)

    def measure(self, load: Load, seed: int) -> Served:
        from penstock import SamplingParams

        params = SamplingParams(max_tokens=load.output, temperature=0.0, ignore_eos=True)
        began_s = time.perf_counter()
        asked = [{"prompt_token_ids": prompt} for prompt in prompts(load, seed)]
        found = self._llm.generate(asked, params, use_tqdm=False)
        taken_s = time.perf_counter() - began_s
        return summary(load, [(o.metrics.ttft_s or 0.0, len(o.outputs[0].token_ids)) for o in found], taken_s)


def our_server(model: str, weights: str, folder: Path) -> Server:
    config = folder / "serving.toml"
    config.write_text("[engine]\nprefix_cache = false\nmax_context = 1024\nseed = 1\n")
    command = [
        sys.executable, "-m", "penstock.cli.main", "serve", model, "--config", str(config),
        "--weights", weights, "--port", str(urlsplit(OURS_URL).port), "--model-name", "model",
        "--no-log-requests",
    ]  # fmt: skip
    return Server(command, OURS_URL, "model", folder / "serving.log")


def run(args: argparse.Namespace) -> None:
    load = Load(args.clients, args.requests or args.clients, args.input, args.output)
    args.logs.mkdir(parents=True, exist_ok=True)
    ours = our_server(args.model, args.weights, args.logs)
    ours.signal(signal.SIGSTOP)
    peer = (
        Server(shlex.split(args.peer), args.peer_url, args.peer_model, args.logs / "peer.log")
        if args.peer
        else InProcess(args.model, args.weights)
    )
    rows: dict[str, list[Served]] = {"ours": [], "theirs": []}

    def turn(name: str, measure: Callable[[Load, int], Served], server: object, seed: int) -> None:
        if isinstance(server, Server):
            server.signal(signal.SIGCONT)
        row = measure(load, seed)
        if isinstance(server, Server):
            server.signal(signal.SIGSTOP)
        if seed:
            rows[name].append(row)
            print(f"{name:6} {row.total_tps:8.1f} tok/s in all, {row.output_tps:7.1f} out, TTFT "
                  f"{row.ttft_mean_ms:7.0f} ms mean, {row.ttft_p95_ms:7.0f} p95", flush=True)  # fmt: skip

    if isinstance(peer, Server):
        peer.signal(signal.SIGSTOP)
    for seed in range(args.rounds + 1):  # the first warms both
        for name, server in (("ours", ours), ("theirs", peer))[:: 1 if seed % 2 else -1]:
            turn(name, server.measure, server, seed)
    ours.close()
    if isinstance(peer, Server):
        peer.close()
    ratio = statistics.median(r.total_tps for r in rows["ours"]) / statistics.median(
        r.total_tps for r in rows["theirs"]
    )
    print(f"{args.model} {args.weights}, {load.clients} clients, {load.input} in, {load.output} out: "
          f"{ratio:.2f}x of {args.peer or 'the engine in process'}")  # fmt: skip
    if args.out:
        found = {name: [asdict(row) for row in served] for name, served in rows.items()}
        append(args.out, stamp("", 0) | asdict(load) | {"model": args.model, "weights": args.weights,
               "peer": args.peer or "in process", "ratio": ratio} | found)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, help="in each round. Default: one for each client")
    parser.add_argument("--input", type=int, default=32)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", default="", help="command of another server")
    parser.add_argument("--peer-url", default="http://127.0.0.1:8091")
    parser.add_argument("--peer-model", default="model", help="name that the peer answers to")
    parser.add_argument("--logs", type=Path, default=Path("build/serving"))
    parser.add_argument("--out", type=Path)
    run(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
