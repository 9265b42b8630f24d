"""Every KV retention keeps the promises of penstock.kv.retention.Retention."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.kv.retention import RETENTIONS, HeldBlock, exact_for

NUM_BLOCKS = st.integers(1, 40)
BLOCK_SIZES = st.integers(1, 8)
WINDOWS = st.one_of(st.none(), st.integers(1, 60))


def held_blocks(num_blocks, hole_bits):
    """Any subset that still holds the latest block."""
    return [HeldBlock(p) for p in range(num_blocks) if p == num_blocks - 1 or hole_bits >> p & 1]


@pytest.mark.parametrize("name", RETENTIONS)
@given(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZES, window=WINDOWS, holes=st.integers(0, 2**40 - 1))
def test_drops_only_what_is_held_and_never_the_latest_block(name, num_blocks, block_size, window, holes):
    held = held_blocks(num_blocks, holes)
    dropped = RETENTIONS[name](window).drop(held, num_blocks * block_size, block_size)

    assert set(dropped) <= {block.place for block in held[:-1]}
    assert dropped == sorted(set(dropped))


@pytest.mark.parametrize("name", RETENTIONS)
@given(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZES, window=WINDOWS, holes=st.integers(0, 2**40 - 1))
def test_asked_again_about_what_it_kept_it_drops_no_more(name, num_blocks, block_size, window, holes):
    retention = RETENTIONS[name](window)
    held = held_blocks(num_blocks, holes)
    dropped = set(retention.drop(held, num_blocks * block_size, block_size))
    kept = [block for block in held if block.place not in dropped]

    assert retention.drop(kept, num_blocks * block_size, block_size) == []


@pytest.mark.parametrize("name", [name for name in RETENTIONS if RETENTIONS[name](None).exact])
@given(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZES, window=WINDOWS)
def test_an_exact_one_drops_nothing_that_a_later_row_reads(name, num_blocks, block_size, window):
    num_tokens = num_blocks * block_size
    held = [HeldBlock(p) for p in range(num_blocks)]
    dropped = RETENTIONS[name](window).drop(held, num_tokens, block_size)
    first_read = 0 if window is None else num_tokens - window + 1

    assert all((place + 1) * block_size <= first_read for place in dropped)


@given(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZES, window=st.integers(1, 60))
def test_the_exact_one_of_a_window_keeps_nothing_in_vain(num_blocks, block_size, window):
    num_tokens = num_blocks * block_size
    held = [HeldBlock(p) for p in range(num_blocks)]
    dropped = RETENTIONS[exact_for(window)](window).drop(held, num_tokens, block_size)
    in_vain = [p for p in range(num_blocks - 1) if (p + 1) * block_size <= num_tokens - window + 1]

    assert dropped == in_vain


def test_the_exact_one_of_full_attention_keeps_everything():
    held = [HeldBlock(p) for p in range(5)]

    assert RETENTIONS[exact_for(None)](None).drop(held, 10, 2) == []
