"""BlockPool: states of a block, and what it refuses."""

import pytest

from penstock.kv.block_pool import NULL_BLOCK, BlockPool


def make_pool(num_blocks=5):
    evicted = []
    return BlockPool(num_blocks, on_evict=evicted.append), evicted


def test_hands_out_every_block_but_the_null_block_once():
    pool, _ = make_pool()
    blocks = [pool.take() for _ in range(4)]

    assert sorted(blocks) == [1, 2, 3, 4]
    assert pool.take() is None
    assert NULL_BLOCK not in blocks


def test_a_block_freed_last_is_handed_out_first():
    pool, _ = make_pool()
    first, second = pool.take(), pool.take()
    pool.release(first)
    pool.release(second)

    assert pool.take() == second


def test_untouched_blocks_go_before_cached_ones_which_go_least_recently_used_first():
    pool, evicted = make_pool()
    old, new = pool.take(), pool.take()
    for block in (old, new):
        pool.cache(block)
        pool.release(block)

    assert {pool.take(), pool.take()} == {3, 4}
    assert evicted == []
    assert (pool.take(), pool.take()) == (old, new)
    assert evicted == [old, new]
    assert not pool.is_cached(old)


def test_sharing_takes_a_block_out_of_reach_of_eviction():
    pool, evicted = make_pool(3)
    kept, other = pool.take(), pool.take()
    pool.cache(kept)
    pool.release(kept)
    pool.release(other)
    pool.share(kept)

    assert pool.num_free == 1
    assert pool.take() == other
    assert pool.take() is None
    assert evicted == []


def test_a_shared_block_is_unused_only_after_its_last_user():
    pool, _ = make_pool(2)
    block = pool.take()
    pool.cache(block)
    pool.share(block)
    pool.release(block)

    assert pool.num_free == 0
    pool.release(block)
    assert (pool.num_free, pool.num_cached) == (1, 1)


def test_being_used_again_makes_a_cached_block_recent():
    pool, evicted = make_pool(3)
    blocks = [pool.take(), pool.take()]
    for block in blocks:
        pool.cache(block)
        pool.release(block)
    pool.share(blocks[0])
    pool.release(blocks[0])
    pool.take()

    assert evicted == [blocks[1]]


def test_uncaching_frees_an_unused_block_and_leaves_a_used_one_to_its_user():
    pool, evicted = make_pool(3)
    used, unused = pool.take(), pool.take()
    for block in (used, unused):
        pool.cache(block)
    pool.release(unused)
    pool.uncache(used)
    pool.uncache(unused)

    assert (pool.num_free, pool.num_cached) == (1, 0)
    pool.release(used)
    assert pool.num_free == 2
    assert pool.find_fault() is None
    assert evicted == []


@pytest.mark.parametrize(
    "misuse", ["double release", "null", "share uncached", "cache shared", "uncache uncached"]
)
def test_misuse_is_refused(misuse):
    pool, _ = make_pool()
    block = pool.take()
    with pytest.raises(AssertionError):
        if misuse == "double release":
            pool.release(block)
            pool.release(block)
        elif misuse == "null":
            pool.release(NULL_BLOCK)
        elif misuse == "share uncached":
            pool.share(block)
        elif misuse == "cache shared":
            pool.cache(block)
            pool.share(block)
            pool.cache(block)
        else:
            pool.uncache(block)


def test_a_pool_needs_one_block_beside_the_null_block():
    with pytest.raises(AssertionError):
        make_pool(1)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda pool: pool._free.append(pool._free[0]), "free twice"),
        (lambda pool: pool._free.pop(), "lost"),
        (lambda pool: pool._free.append(NULL_BLOCK), "null block"),
        (lambda pool: pool._free.append(1), "two of"),
        (lambda pool: pool._unused_cached._unused.update({2: None}), "two of"),
        (lambda pool: pool._num_users.__setitem__(4, -1), "fewer than no users"),
        (lambda pool: pool._is_cached.__setitem__(4, 1), "mark is wrong"),
    ],
)
def test_find_fault_names_what_is_broken(break_it, words):
    pool, _ = make_pool()
    assert pool.take() == 1
    assert pool.find_fault() is None
    break_it(pool)

    assert words in pool.find_fault()
