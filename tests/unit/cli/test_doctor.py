"""`penstock doctor` and `penstock models`: what is said of machine, build, plan and kernels is what is so."""

import json
import subprocess
import sys

from tests.unit.cli.checkpoints import make_checkpoint
from tests.unit.cli.conftest import environment

from penstock.backends.cpu.probe import isas
from penstock.config import EngineConfig
from penstock.engine.build import load_model
from penstock.engine.locate import embedded_models

HIDE_NATIVE = "import sys; sys.modules['penstock._native'] = None; from penstock.cli.main import main; "


def without_native(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """As after an install without a C++ compiler."""
    return subprocess.run(
        [sys.executable, "-c", f"{HIDE_NATIVE} sys.exit(main({arguments!r}))"],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_machine_and_its_limits_are_named(here):
    result = here("doctor", "--json", env={"PENSTOCK_ISA": ""})
    report = json.loads(result.out)

    assert report["native"] is True
    assert report["isas"] == [isa for isa in isas() if isa != "amx_emulated"]
    assert report["isa"] == report["isas"][0]
    assert report["cores"] >= 1
    assert 0 < report["available_bytes"] <= report["memory_bytes"]
    assert 1e8 < report["read_bytes_per_s"] < 1e13
    assert 1e8 < report["float32_flops_per_s"] < 1e15
    assert 1e8 < report["int8_ops_per_s"] < 1e16


def test_measuring_can_be_left_out(here):
    assert "GB/s" not in here("doctor", "--no-measure").out
    assert "GB/s" in here("doctor").out


def test_a_forced_isa_is_said_to_be_forced(here):
    result = here("doctor", "--no-measure", env={"PENSTOCK_ISA": "scalar"})

    assert "scalar: PENSTOCK_ISA asks for it" in result.out


def test_a_plan_is_explained_as_it_would_be_run(here):
    report = json.loads(here("doctor", "penstock-tiny", "--no-measure", "--json", "--seed", "4").out)
    loaded = load_model("penstock-tiny", EngineConfig(seed=4))

    assert report["fingerprint"] == loaded.fingerprint
    assert report["plan"]["max_context"] == loaded.plan.max_context == 2048
    assert report["plan"]["is_faithful"] is True
    assert sum(kernel["calls"] for kernel in report["kernels"]) == len(loaded.program.calls)
    assert {kernel["runs_on"] for kernel in report["kernels"]} == {f"native, {loaded.plan.isa}"}
    text = here("doctor", "penstock-tiny", "--no-measure", "--seed", "4").out
    for words in (
        "penstock-tiny: faithful",
        "all that the model was made for",
        "kernels: native",
        "the cache holds",
    ):
        assert words in text


def test_lossy_weights_are_called_lossy(here):
    text = here("doctor", "penstock-tiny", "--no-measure", "--weights", "int4").out

    assert "plan for penstock-tiny: lossy" in text
    assert "int4_g64" in text


def test_without_native_kernels_doctor_says_so_and_models_still_run(tmp_path):
    doctor = without_native(["doctor", "penstock-tiny"])

    assert (doctor.returncode, doctor.stderr) == (0, "")
    assert "native   none: this install has no native kernels" in doctor.stdout
    assert "C++20 compiler" in doctor.stdout
    assert "kernels: numpy reference" in doctor.stdout
    run = without_native(["run", "penstock-tiny", "-p", "def f(", "--max-tokens", "2", "--temperature", "0"])

    assert run.returncode == 0
    assert run.stdout.startswith("def f(")
    assert run.stderr.startswith("note: running on the reference backend")
    bench = without_native(["bench", "latency", "penstock-tiny"])

    assert bench.returncode == 64
    assert bench.stderr.startswith("error: the reference backend has no floor")


def test_models_lists_what_is_embedded_and_what_is_cached(here, tmp_path):
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    make_checkpoint(snapshot)
    (tmp_path / "hub" / "models--empty--model" / "snapshots").mkdir(parents=True)
    env = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    rows = [json.loads(line) for line in here("models", "--json", env=env).out.splitlines()]
    shown = here("models", env=env).out

    assert {row["model"]: row["kind"] for row in rows} == {
        **dict.fromkeys(embedded_models(), "embedded"),
        "some/model": "cached",
    }
    assert all(row["bytes"] > 0 for row in rows)
    assert "penstock-tiny" in shown
    assert "some/model" in shown


def test_the_version_is_printed(here):
    result = here("--version")

    assert (result.code, result.out.split()[0]) == (0, "penstock")


def test_help_names_every_command(here):
    result = here("--help")

    assert result.code == 0
    for verb in ("run", "bench", "doctor", "models"):
        assert f"    {verb} " in result.out
    assert here().code == 64
