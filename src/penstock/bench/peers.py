"""Ours beside a peer, pair by pair: 5 A-B-B-A blocks a case, rows appended as they come.

The peers, how each is started, and the pairs with their bars are data: benchmarks/peers/peers.toml. Both
engines of a pair are loaded once; one runs while the other is stopped. Decode takes its prompts from a cache
in every engine, so that only decode is timed.
"""

import heapq
import json
import re
import statistics
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

import penstock
from penstock import env
from penstock.backends.cpu.probe import Probe
from penstock.bench.distance import distance
from penstock.bench.driver import Driver
from penstock.bench.kernels import Steal
from penstock.bench.ratio import Ratio, ratio_of
from penstock.bench.record import Row
from penstock.errors import ConfigError
from penstock.text.tokenizer import Tokenizer

MAX_STEAL = 0.05  # a row above is void
CONTEXT = 129  # 128 come from the caches; the first token of a run is not timed
WORKLOADS: Mapping[str, str] = {  # name -> the line a driver is told
    "decode-1": f"decode 1 {CONTEXT} 32",
    "decode-8": f"decode 8 {CONTEXT} 16",
    "decode-32": f"decode 32 {CONTEXT} 8",
    "prefill-512": "prefill 512",
    "prefill-2048": "prefill 2048",
    "embed-128": "embed 16 128",
    "embed-512": "embed 4 512",
}
START = "start"  # a process of each, from nothing to the first token of 128, and its peak memory
LOGITS = "logits"  # of one text, against the peer's: the distance, not the speed
LOGITS_TOKENS = 256
START_LINES = ("prefill 128", f"decode 1 {CONTEXT} 16")


@dataclass(frozen=True, slots=True)
class Pair:
    """`bars` by workload: the least ratio, with AMX and without; None: reported only."""

    name: str
    model: str
    our_model: str  # what we load: the checkpoint, or the peer's own file
    ours: Mapping[str, Any]  # Any: options of EngineConfig
    peer: str
    weights: str
    bars: Mapping[str, tuple[float | None, float | None]]

    def bar(self, workload: str, isa: str) -> float | None:
        return self.bars[workload][0 if isa == "amx" else 1]


@dataclass(frozen=True, slots=True)
class Case:
    pair: Pair
    workload: str

    @property
    def name(self) -> str:
        return f"{self.pair.name}: {self.workload}"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What peers.toml says. `folder`: where the peers' environments and the models are."""

    commands: Mapping[str, Sequence[str]]
    pairs: Sequence[Pair]
    here: Path
    folder: Path

    @classmethod
    def read(cls, here: Path, folder: Path) -> Self:
        path = here / "peers.toml"
        if not path.exists():
            raise ConfigError(
                f"{path} is not there; the peers' scripts come with the sources. Run it in a checkout, or "
                "say --benchmarks FOLDER."
            )
        data = tomllib.loads(path.read_text())
        pairs = [
            Pair(
                entry["name"],
                entry["model"],
                entry.get("our_model", "{folder}/models/{model}"),
                entry["ours"],
                entry["peer"],
                entry["weights"],
                {
                    name: (bars.get("amx"), bars.get("no_amx"))
                    for name, bars in entry.get("workloads", {}).items()
                },
            )
            for entry in data["pair"]
        ]
        commands = {name: entry["command"] for name, entry in data["peer"].items()}
        return cls(commands, pairs, here, folder)

    def cases(self, pattern: str) -> list[Case]:
        """Those in whose name the regular expression is found, a pair's together."""
        made = [Case(pair, workload) for pair in self.pairs for workload in pair.bars]
        return [case for case in made if re.search(pattern, case.name)]

    def command(self, pair: Pair, threads: int, *, is_ours: bool) -> list[str]:
        values = {
            "here": self.here,
            "folder": self.folder,
            "model": pair.model,
            "weights": pair.weights,
            "threads": threads,
        }
        if is_ours:
            model = pair.our_model.format(**values)
            driver = str(self.here / "drive_penstock.py")
            return [sys.executable, driver, model, str(threads), json.dumps(pair.ours)]
        return [part.format(**values) for part in self.commands[pair.peer]]


@dataclass(slots=True)
class Session:
    """Runs cases of one catalogue. `log`: where the engines' own words go."""

    catalogue: Catalogue
    isa: str
    threads: int
    probe: Probe
    log: Path
    env: Mapping[str, str]

    def run(self, cases: Sequence[Case], num_done: Mapping[str, int], num_blocks: int) -> Iterator[Row]:
        """One row per pair of runs, as soon as it is there; `num_done` pairs of a case are not run again."""
        needed = {case.name: 1 if case.workload == LOGITS else 2 * num_blocks for case in cases}
        todo = [case for case in cases if num_done.get(case.name, 0) < needed[case.name]]
        for pair in dict.fromkeys(case.pair.name for case in todo):
            of_pair = [case for case in todo if case.pair.name == pair]
            loaded = [case for case in of_pair if case.workload in WORKLOADS]
            if loaded:
                with self._driver(loaded[0].pair, is_ours=True) as ours:
                    ours.ready().stop()
                    with self._driver(loaded[0].pair, is_ours=False) as theirs:
                        theirs.ready().stop()
                        for case in loaded:
                            yield from self._warm(case, ours, theirs, num_done.get(case.name, 0), num_blocks)
            for case in of_pair:
                if case.workload == START:
                    yield from self._cold(case, num_done.get(case.name, 0), num_blocks)
                elif case.workload == LOGITS:
                    yield self._logits(case)

    def _driver(self, pair: Pair, *, is_ours: bool, watch: bool = False) -> Driver:
        command = self.catalogue.command(pair, self.threads, is_ours=is_ours)
        return Driver(command, self.env, self.log, watch=watch)

    def _warm(
        self, case: Case, ours: Driver, theirs: Driver, num_done: int, num_blocks: int
    ) -> Iterator[Row]:
        line = WORKLOADS[case.workload]
        for driver in (ours, theirs):  # pages, caches, prompts; compilers that wait for a shape
            driver.ask(line)
            driver.stop()
        for index in range(num_done, 2 * num_blocks):
            row = self._begin_row(case, index, ours.description, theirs.description)
            steal = Steal()
            for driver in (ours, theirs) if index % 2 == 0 else (theirs, ours):
                (rate,) = driver.ask(line).values()
                driver.stop()
                row["ours" if driver is ours else "theirs"] = rate
            yield row | {"steal": steal.share()}

    def _cold(self, case: Case, num_done: int, num_blocks: int) -> Iterator[Row]:
        for index in range(num_done, 2 * num_blocks):
            row = self._begin_row(case, index, {}, {})
            steal = Steal()
            for is_ours in (True, False) if index % 2 == 0 else (False, True):
                name = "ours" if is_ours else "theirs"
                with self._driver(case.pair, is_ours=is_ours, watch=True) as driver:
                    driver.ready().ask(START_LINES[0])
                    row[name] = 1 / driver.since_start_s  # a rate, as everywhere: more is better
                    driver.ask(START_LINES[1])
                    row[f"{name}_pss_bytes"] = driver.peak_pss_bytes
                    row[f"{name}_engine"] = driver.description
            yield row | {"steal": steal.share()}

    def _logits(self, case: Case) -> Row:
        """One text through both, one after the other; a row of distances."""
        row = self._begin_row(case, 0, {}, {})
        found = []
        with tempfile.TemporaryDirectory() as folder:
            ids = Path(folder) / "ids.json"
            ids.write_text(json.dumps(_text_ids(self.catalogue.folder / "models" / case.pair.model)))
            for is_ours, name in ((True, "ours"), (False, "theirs")):
                out = Path(folder) / name
                with self._driver(case.pair, is_ours=is_ours) as driver:
                    num_rows = driver.ready().ask(f"logits {ids} {out}")["rows"]
                    row[f"{name}_engine"] = driver.description
                found.append(np.fromfile(out, np.float32).reshape(num_rows, -1))
        return row | distance(*found) | {"steal": 0.0}

    def _begin_row(self, case: Case, index: int, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Row:
        return {
            "case": case.name, "index": index, "ours_engine": dict(ours), "theirs_engine": dict(theirs),
            "read_gbps": self.probe.read_bytes_per_s() / 1e9,
        }  # fmt: skip


def _text_ids(model: Path) -> list[int]:
    """The first tokens of a module of Python's own library, which every machine has."""
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    tokenizer = Tokenizer.load(model, vocab_size)
    return list(tokenizer.encode(Path(heapq.__file__).read_text()))[:LOGITS_TOKENS]


def environment() -> dict[str, str]:
    """What drivers see: ours finds the package that runs this, peers no thread settings but their own."""
    made = env.for_child(PYTHONPATH=str(Path(penstock.__file__).parent.parent))
    return {name: value for name, value in made.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One case: the ratio, what each reached, and the bar it is held against on this kind of machine."""

    case: Case
    ratio: Ratio
    ours: float
    theirs: float
    num_void: int
    bar: float | None

    def __str__(self) -> str:
        r = self.ratio
        judged = (
            "" if self.bar is None else f"  bar {self.bar:4.2f} {'met' if r.meets(self.bar) else 'MISSED'}"
        )
        void = f"  ({self.num_void} void)" if self.num_void else ""
        return (
            f"{self.case.name:58} {self.ours:9.2f} {self.theirs:9.2f}  {r.ratio:5.2f} "
            f"[{r.low:4.2f}, {r.high:4.2f}]  {r.num_pairs} pairs{judged}{void}"
        )


def verdicts(cases: Sequence[Case], rows: Sequence[Row], isa: str) -> list[Verdict]:
    """Of the cases that have rows; rows during which the host took too much of the processor are left out."""
    found = []
    for case in cases:
        own = [row for row in rows if row["case"] == case.name and case.workload != LOGITS]
        kept: list[Any] = [row for row in own if float(str(row["steal"])) <= MAX_STEAL]
        if kept:
            ours, theirs = ([float(row[name]) for row in kept] for name in ("ours", "theirs"))
            found.append(
                Verdict(
                    case,
                    ratio_of(ours, theirs),
                    statistics.median(ours),
                    statistics.median(theirs),
                    len(own) - len(kept),
                    case.pair.bar(case.workload, isa),
                )
            )
    return found
