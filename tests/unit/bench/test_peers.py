"""`penstock bench peers` with fake engines: turns, rows as they come, what --resume leaves out, verdicts."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from tests.unit.cli.conftest import here  # noqa: F401  # the command line in this process

from penstock.bench.driver import Driver
from penstock.bench.peers import Case, Catalogue, Pair, environment, verdicts
from penstock.bench.ratio import ratio_of
from penstock.bench.record import read
from penstock.cli import bench_peers
from penstock.errors import BackendError

PROTOCOL = Path(__file__).parents[3] / "benchmarks" / "peers" / "protocol.py"
FAKE = """
import sys, time
from protocol import serve

class Fake:
    def describe(self):
        print("engines are chatty")
        return {"engine": sys.argv[0], "weight_bytes": 1}
    def decode(self, prompts, tokens):
        with open(LOG, "a") as log: log.write(f"{NAME} {len(prompts)} {len(prompts[0])}\\n")
        return RATE * len(prompts)
    def prefill(self, prompt):
        assert prompt not in SEEN
        SEEN.append(prompt)

SEEN = []
serve(Fake)
"""
PEERS = """
[peer.fake]
command = ["{python}", "{{here}}/fake.py", "{{model}}-{{weights}}", "{{threads}}"]
[[pair]]
name = "ours | fake"
model = "none"
ours = {{}}
peer = "fake"
weights = "q"
[pair.workloads]
decode-1 = {{ amx = 2.9, no_amx = 2.9 }}
decode-8 = {{ no_amx = 3.2 }}
start = {{}}
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """benchmarks/ with a fake peer, and a fake of ours that is three times as fast."""
    folder = tmp_path / "benchmarks" / "peers"
    folder.mkdir(parents=True)
    (folder / "protocol.py").write_text(PROTOCOL.read_text())
    log = str(tmp_path / "turns.log")
    for name, rate in (("drive_penstock", 300.0), ("fake", 100.0)):
        head = f"LOG, NAME, RATE = {log!r}, {name!r}, {rate}\n"
        (folder / f"{name}.py").write_text(head + FAKE)
    (folder / "peers.toml").write_text(PEERS.format(python=sys.executable))
    monkeypatch.setattr(bench_peers, "PROBED_BYTES", 1 << 21)
    return tmp_path


def command(here, checkout, *more):  # noqa: F811
    folders = ("--benchmarks", str(checkout / "benchmarks"), "--folder", str(checkout), "--threads", "1")
    result = here("bench", "peers", *folders, *more)
    assert result.code == 0, result.err
    return result.out


def test_pairs_go_a_b_b_a_and_each_is_a_row(here, checkout):  # noqa: F811
    out = command(here, checkout, "--case", "decode-8", "--blocks", "2")
    rows = read(checkout / "benchmarks" / "results" / "peers.jsonl")
    turns = [line.split()[0] for line in (checkout / "turns.log").read_text().splitlines()]

    assert turns[:2] == ["drive_penstock", "fake"]  # the warm-up
    assert turns[2:] == ["drive_penstock", "fake", "fake", "drive_penstock"] * 2
    assert [(row["index"], row["ours"], row["theirs"]) for row in rows] == [(i, 2400, 800) for i in range(4)]
    assert all(row["read_gbps"] > 0 and row["ours_engine"]["weight_bytes"] == 1 for row in rows)
    assert "3.00 [3.00, 3.00]  4 pairs  bar 3.20 MISSED" in out


def test_resume_goes_on_where_the_last_run_stopped_and_a_new_run_stands_alone(here, checkout):  # noqa: F811
    path = checkout / "benchmarks" / "results" / "peers.jsonl"
    command(here, checkout, "--case", "decode-1", "--blocks", "1")
    command(here, checkout, "--case", "decode", "--blocks", "2", "--resume")
    names = [row["case"] for row in read(path)]

    assert names.count("ours | fake: decode-1") == 4
    assert names.count("ours | fake: decode-8") == 4
    assert len({row["run"] for row in read(path) if row["case"].endswith("decode-1")}) == 1
    time.sleep(1.1)  # runs are told apart by the second in which they began
    out = command(here, checkout, "--case", "decode-1", "--blocks", "1")
    assert "2 pairs  bar 2.90 met" in out
    assert len(read(path)) == 10


def test_a_start_is_a_process_of_its_own_with_its_memory(here, checkout):  # noqa: F811
    command(here, checkout, "--case", "start", "--blocks", "1")
    rows = read(checkout / "benchmarks" / "results" / "peers.jsonl")

    assert [row["index"] for row in rows] == [0, 1]
    assert all(0 < row["ours"] < 100 and row["theirs_pss_bytes"] >= 0 for row in rows)


def test_names_are_listed_and_unknown_ones_refused(here, checkout):  # noqa: F811
    assert command(here, checkout, "--list").splitlines()[-1] == "ours | fake: start"
    folders = ("--benchmarks", str(checkout / "benchmarks"))
    assert "no case is called so" in here("bench", "peers", *folders, "--case", "prefill").err
    assert "Run it in a checkout" in here("bench", "peers", "--benchmarks", "/nowhere").err


def test_a_stopped_driver_does_nothing_until_it_is_asked_again(tmp_path):
    script = "import sys\nprint('{}', flush=True)\nfor line in sys.stdin: print('{\"n\": 1}', flush=True)\n"
    with Driver([sys.executable, "-c", script], os.environ, tmp_path / "log", watch=True) as driver:
        driver.ready().stop()
        time.sleep(0.05)
        status = Path(f"/proc/{driver._process.pid}/stat").read_text().rpartition(")")[2].split()[0]

        assert status == "T"
        assert driver.ask("x") == {"n": 1}
        time.sleep(0.2)
        assert driver.peak_pss_bytes > 1 << 20
    assert driver._process.returncode == -9


def test_an_engine_that_dies_is_named_with_its_log(tmp_path):
    log = tmp_path / "log"
    driver = Driver([sys.executable, "-c", "raise SystemExit('no model')"], os.environ, log, watch=False)
    with driver, pytest.raises(BackendError, match="gave no answer"):
        driver.ready()

    assert "no model" in log.read_text()


def test_peers_find_no_thread_settings_of_the_shell(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HOME_OF_A_PEER", "here")

    assert "OMP_NUM_THREADS" not in environment()
    assert environment()["HOME_OF_A_PEER"] == "here"


def test_rows_under_a_thieving_host_are_void():
    pair = Pair("p", "m", "m", {}, "x", "q", {"decode-1": (1.0, 1.5)})
    case = Case(pair, "decode-1")
    rows = [
        {"case": case.name, "ours": o, "theirs": 1.0, "steal": s} for o, s in ((2, 0), (2, 0.01), (9, 0.06))
    ]
    (found,) = verdicts([case], rows, "avx512")

    assert (found.ratio.ratio, found.num_void, found.bar) == (2.0, 1, 1.5)
    assert verdicts([case], rows, "amx")[0].bar == 1.0
    assert verdicts([case], [], "amx") == []


def test_the_interval_of_a_ratio_holds_it_and_shrinks_with_agreement():
    steady = ratio_of([10, 10.1, 9.9, 10, 10.1], [5, 5, 5.1, 4.9, 5])
    wild = ratio_of([10, 15, 5, 12, 8], [5, 9, 2, 4, 7])

    assert steady.low <= steady.ratio <= steady.high
    assert steady.high - steady.low < wild.high - wild.low
    assert steady.meets(2.0)
    assert not steady.meets(2.2)


def test_every_pair_of_the_project_names_a_peer_that_is_there():
    folder = PROTOCOL.parent
    catalogue = Catalogue.read(folder, Path("/peers"))

    for pair in catalogue.pairs:
        command = catalogue.command(pair, 2, is_ours=False)
        assert all("{" not in part for part in command)
        assert (folder / f"setup_{pair.peer}.sh").exists()
        ours = catalogue.command(pair, 2, is_ours=True)
        assert json.loads(ours[-1]) == pair.ours
