"""What the compiler may not emit: instructions that break bits, and wide registers before a CPU check.

Reads the object files of every build folder at hand; a machine that only has the wheel checks the forbidden
instructions in the extension itself.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_native = pytest.importorskip("penstock._native", reason="no native build")
pytestmark = pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")

ROOT = Path(__file__).parents[2]
# Their results differ from one processor to the next.
FORBIDDEN = re.compile(r"\b(v?rcp(14|28)?[sp]s|v?rsqrt(14|28)?[sp]s|vexp2p[sd])\b")
# What an object library may not touch: wider registers than its own, and products of bf16 pairs. Their bits
# are the contract's only where they are fed two k of one chain (ADR 6), which is one library's business.
NOT_IN = {
    "_native": re.compile(r"%[yzt]mm|vdpbf16ps"),  # bindings and runtime: before anybody asked the processor
    "penstock_scalar": re.compile(r"%[yzt]mm|vdpbf16ps"),
    "penstock_avx2": re.compile(r"%[zt]mm|%k[1-7]|vdpbf16ps"),
    "penstock_avx512": re.compile(r"%tmm|vdpbf16ps"),
    "penstock_avx512bf16": re.compile(r"%tmm"),
    "penstock_amx": re.compile(r"vdpbf16ps"),
    "penstock_amx_emulated": re.compile(r"%tmm|vdpbf16ps"),
}


def disassembly(path: Path) -> Iterator[str]:
    run = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True
    )
    yield from run.stdout.splitlines()


def objects(library: str) -> list[Path]:
    """Of the newest build folder that has them."""
    found = sorted(ROOT.glob(f"build/*/CMakeFiles/{library}.dir"), key=lambda p: p.stat().st_mtime)
    is_plain = [p for p in found if "sanitize" not in p.parts[-3]]
    return sorted(is_plain[-1].rglob("*.o")) if is_plain else []


def test_no_instruction_that_breaks_bits_is_in_the_extension() -> None:
    hits = [line for line in disassembly(Path(_native.__file__)) if FORBIDDEN.search(line)]

    assert hits == []


@pytest.mark.parametrize("library", NOT_IN)
def test_instructions_stay_behind_the_processor_check_and_in_their_library(library: str) -> None:
    paths = objects(library)
    if not paths:
        pytest.skip(f"no build folder holds the objects of {library}")
    for path in paths:
        hits = [line for line in disassembly(path) if NOT_IN[library].search(line)]

        assert hits == [], f"{path.name}: {hits[0]}"


def test_the_search_sees_what_it_looks_for() -> None:
    assert FORBIDDEN.search("  10: vrcp14ps %zmm1,%zmm2")
    assert not FORBIDDEN.search("  10: vdivps %zmm1,%zmm2,%zmm3")
    wide = [line for path in objects("penstock_avx512") for line in disassembly(path) if "%zmm" in line]
    assert wide or not objects("penstock_avx512")
    paired = [line for path in objects("penstock_avx512bf16") for line in disassembly(path)]
    assert any("vdpbf16ps" in line for line in paired) or not paired
