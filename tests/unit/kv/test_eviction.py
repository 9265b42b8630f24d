"""EvictionQueue behind BlockPool: whose cached blocks go first, and that one tenant alone notices nothing."""

import pytest
from tests.fakes.model import make_kv, make_request

from penstock.kv.block_pool import BlockPool


def make_pool(num_usable=8, share=0.5):
    evicted = []
    return BlockPool(num_usable + 1, evicted.append, tenant_share=share), evicted


def leave_cached(pool, tenant, count):
    """`count` blocks that this tenant has used one after the other, all cached and unused."""
    blocks = [pool.take(tenant) for _ in range(count)]
    for block in blocks:
        pool.cache(block)
        pool.release(block)
    return blocks


def test_a_tenant_at_its_share_loses_its_own_though_anothers_are_older():
    pool, evicted = make_pool()
    quiet = leave_cached(pool, "quiet", 4)
    loud = leave_cached(pool, "loud", 4)
    for _ in range(3):
        leave_cached(pool, "loud", 1)

    assert evicted == loud[:3]
    assert pool.num_held("loud") == pool.num_held("quiet") == 4
    assert all(pool.is_cached(block) for block in quiet)
    assert pool.find_fault() is None


def test_a_tenant_beyond_its_share_pays_for_what_others_take():
    pool, evicted = make_pool()
    quiet = leave_cached(pool, "quiet", 2)
    loud = leave_cached(pool, "loud", 6)  # there was room
    for _ in range(2):
        pool.take("quiet")

    assert evicted == loud[:2]
    assert all(pool.is_cached(block) for block in quiet)


def test_within_their_shares_the_least_recently_used_goes_whoever_has_it():
    pool, evicted = make_pool()
    old = leave_cached(pool, "a", 3)
    leave_cached(pool, "b", 3)
    leave_cached(pool, "c", 2)
    pool.take("c")

    assert evicted == old[:1]


def test_of_several_beyond_their_shares_the_one_with_most_pays():
    pool, evicted = make_pool(num_usable=10, share=0.2)
    most = leave_cached(pool, "a", 6)
    leave_cached(pool, "b", 4)
    pool.take("c")

    assert evicted == most[:1]


def test_others_pay_once_a_tenant_beyond_its_share_uses_all_it_has():
    pool, evicted = make_pool()
    quiet = leave_cached(pool, "quiet", 3)
    for _ in range(7):
        assert pool.take("loud") is not None

    assert evicted == quiet[:2], "a request that runs goes before what is only cached"
    pool.take("loud")
    assert pool.take("loud") is None
    assert evicted == quiet
    assert pool.find_fault() is None


def test_what_is_freed_or_forgotten_counts_no_more():
    pool, _ = make_pool()
    block = pool.take("a")
    kept = leave_cached(pool, "a", 1)[0]
    pool.release(block)
    assert pool.num_held("a") == 1
    pool.uncache(kept)

    assert pool.num_held("a") == 0
    assert pool.find_fault() is None


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_one_tenant_alone_has_all_blocks_least_recently_used_first(share):
    pool, evicted = make_pool(share=share)
    blocks = leave_cached(pool, "only", 8)
    for block in (blocks[2], blocks[0]):
        pool.share(block)
        pool.release(block)
    for _ in range(8):
        pool.take("only")

    assert evicted == [blocks[1], *blocks[3:], blocks[2], blocks[0]]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda queue: queue._tenant_of.__setitem__(1, None), "nobody's"),
        (lambda queue: queue._num_held.update(a=3), "miscounted"),
        (lambda queue: queue._beyond.update(a=None), "miscounted"),
        (lambda queue: queue._unused_of.update(b=queue._unused_of.pop("a")), "another tenant"),
        (lambda queue: queue._unused_of.clear(), "not those of each"),
    ],
)
def test_find_fault_names_what_is_broken(break_it, words):
    pool, _ = make_pool()
    leave_cached(pool, "a", 2)
    assert pool.find_fault() is None
    break_it(pool._unused_cached)

    assert words in pool.find_fault()


def test_the_manager_counts_by_key_not_by_salt():
    kv = make_kv(num_blocks=8, block_size=2, tenant_share=0.5)

    def run(name, prompt, key_id, salt):
        request = make_request(name, prompt, key_id=key_id, salt=salt)
        hit = kv.find_prefix(request)
        num_tokens = len(request.tokens) - hit.num_tokens
        assert kv.allocate(request, num_tokens, hit)
        request.num_computed_tokens = len(request.tokens)
        kv.commit(request)
        kv.free(request)
        kv.check_integrity()
        return hit.num_tokens

    prompt = [1, 2, 3, 4, 5]
    run("quiet", prompt, "quiet", "q")
    for i in range(20):
        run(f"loud {i}", [i, i, 9, 9, i], "loud", f"salt {i}")

    assert run("quiet again", prompt, "quiet", "q") == 4
