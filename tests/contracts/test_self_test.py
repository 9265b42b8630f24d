"""The start-up self-test: AMX whose bits are not those of its fallback is noticed, kernel by kernel."""

import pytest

_native = pytest.importorskip("penstock._native", reason="no native build")
KERNELS = ["linear_bfloat16", "linear_int8", "linear_int4", "linear_codes4", "linear_codes8"]
PAIRS = [(isa, "avx512") for isa in _native.isas() if isa.startswith("amx")]


@pytest.mark.parametrize("isa, fallback", PAIRS)
def test_equal_kernels_are_trusted(isa: str, fallback: str) -> None:
    assert _native.test_self_test(isa, fallback, "") == ""


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("isa, fallback", PAIRS)
def test_one_wrong_bit_is_noticed_and_the_kernel_named(isa: str, fallback: str, kernel: str) -> None:
    assert _native.test_self_test(isa, fallback, kernel) == kernel


def test_nothing_is_dropped_where_every_instruction_set_is_right_or_absent() -> None:
    assert _native.dropped_isa() == ""
