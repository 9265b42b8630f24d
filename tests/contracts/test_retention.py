"""Every KV retention keeps the promises of penstock.kv.retention.Retention."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.kv.retention import RETENTIONS, HeldBlock, exact_for
from penstock.model.spec import KVGroupSpec

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


EXACT = [name for name in RETENTIONS if RETENTIONS[name](None).exact]


@pytest.mark.parametrize("name", [name for name in EXACT if name != "state"])
@given(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZES, window=WINDOWS)
def test_an_exact_one_drops_no_key_that_a_later_row_reads(name, num_blocks, block_size, window):
    num_tokens = num_blocks * block_size
    held = [HeldBlock(p) for p in range(num_blocks)]
    dropped = RETENTIONS[name](window).drop(held, num_tokens, block_size)
    first_read = 0 if window is None else num_tokens - window + 1

    assert all((place + 1) * block_size <= first_read for place in dropped)


@pytest.mark.parametrize("name", EXACT)
@given(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZES, window=WINDOWS)
def test_an_exact_one_keeps_all_places_that_it_says_the_next_row_reads(name, num_blocks, block_size, window):
    retention = RETENTIONS[name](window)
    num_tokens = num_blocks * block_size
    dropped = retention.drop([HeldBlock(p) for p in range(num_blocks)], num_tokens, block_size)

    assert all(place < retention.first_read(num_tokens, block_size) for place in dropped)
    assert retention.first_read(num_tokens, block_size) <= num_blocks


@pytest.mark.parametrize("name", EXACT)
@given(num_tokens=st.integers(1, 200), block_size=BLOCK_SIZES, window=WINDOWS)
def test_the_peak_holds_what_the_next_row_reads_and_writes(name, num_tokens, block_size, window):
    retention = RETENTIONS[name](window)
    read = range(retention.first_read(num_tokens, block_size), -(-num_tokens // block_size))
    written = {num_tokens // block_size}
    peak = retention.peak_blocks(num_tokens + 1, step_tokens=1, block_size=block_size)

    assert len(set(read) | written) <= peak


@given(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZES, window=st.integers(1, 60))
def test_the_exact_one_of_a_window_keeps_nothing_in_vain(num_blocks, block_size, window):
    num_tokens = num_blocks * block_size
    held = [HeldBlock(p) for p in range(num_blocks)]
    dropped = RETENTIONS[exact_for(KVGroupSpec((0,), window))](window).drop(held, num_tokens, block_size)
    in_vain = [p for p in range(num_blocks - 1) if (p + 1) * block_size <= num_tokens - window + 1]

    assert dropped == in_vain


def test_the_exact_one_of_full_attention_keeps_everything():
    held = [HeldBlock(p) for p in range(5)]

    assert RETENTIONS[exact_for(KVGroupSpec((0,), None))](None).drop(held, 10, 2) == []


def test_of_states_the_latest_alone_is_kept():
    held = [HeldBlock(p) for p in (1, 2, 4)]

    assert RETENTIONS[exact_for(KVGroupSpec((0,), None, is_state=True))](None).drop(held, 9, 2) == [1, 2]
