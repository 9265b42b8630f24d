"""Links and the index: equal by value, or no hit."""

import pytest

from penstock.kv.prefix_index import Linker, PrefixIndex, is_same


def chain(linker, *blocks, salt="", extra=""):
    links = []
    for tokens in blocks:
        links.append(linker.link(links[-1] if links else None, tokens, salt=salt, extra=extra))
    return links


def test_equal_beginnings_have_equal_keys_and_other_ones_differ():
    linker = Linker(b"secret")
    keys = {
        chain(linker, (1, 2), (3, 4))[-1].key,
        chain(linker, (1, 2), (3, 5))[-1].key,
        chain(linker, (1, 9), (3, 4))[-1].key,
        chain(linker, (3, 4))[-1].key,
        chain(linker, (1, 2), (3, 4), salt="a")[-1].key,
        chain(linker, (1, 2), (3, 4), extra="a")[-1].key,
        chain(Linker(b"other"), (1, 2), (3, 4))[-1].key,
    }

    assert len(keys) == 7
    assert chain(linker, (1, 2), (3, 4))[-1].key in keys


def test_salt_and_extra_do_not_run_into_each_other_in_the_key():
    linker = Linker(b"secret")

    assert (
        chain(linker, (1,), salt="ab", extra="c")[0].key != chain(linker, (1,), salt="a", extra="bc")[0].key
    )


def test_a_published_block_is_found_by_whoever_has_the_same_beginning():
    linker, index = Linker(b"secret"), PrefixIndex()
    for place, link in enumerate(chain(linker, (1, 2), (3, 4))):
        assert index.publish(link, 10 + place)

    assert [index.find(link) for link in chain(linker, (1, 2), (3, 4), (5, 6))] == [10, 11, None]
    assert sorted(index) == [10, 11]


def test_the_first_of_two_equal_blocks_stays():
    linker, index = Linker(b"secret"), PrefixIndex()
    (link,) = chain(linker, (1, 2))

    assert index.publish(link, 1)
    assert not index.publish(link, 2)
    assert index.find(link) == 1
    assert index.find_link(2) is None


def test_a_removed_block_is_not_found():
    linker, index = Linker(b"secret"), PrefixIndex()
    (link,) = chain(linker, (1, 2))
    index.publish(link, 1)
    index.remove(1)

    assert index.find(link) is None
    assert len(index) == 0
    assert index.publish(link, 3)


class CollidingLinker(Linker):
    """Every beginning has the same key."""

    def _key(self, *_):
        return bytes(16)


@pytest.mark.parametrize(
    "stranger",
    [
        {"blocks": [(1, 3)]},
        {"blocks": [(1, 2)], "salt": "b"},
        {"blocks": [(1, 2)], "extra": "b"},
        {"blocks": [(0, 0), (1, 2)]},
    ],
)
def test_a_collision_of_keys_is_no_hit(stranger):
    linker, index = CollidingLinker(b"secret"), PrefixIndex()
    (link,) = chain(linker, (1, 2))
    index.publish(link, 1)
    other = chain(linker, *stranger.pop("blocks"), **stranger)[-1]

    assert other.key == link.key
    assert index.find(other) is None
    assert index.find(chain(linker, (1, 2))[0]) == 1


def test_parents_are_compared_by_value_even_when_the_last_blocks_agree():
    linker = CollidingLinker(b"secret")
    one, other = chain(linker, (1, 2), (3, 4))[-1], chain(linker, (9, 9), (3, 4))[-1]

    assert not is_same(one, other)
    assert not is_same(other, one)
    assert is_same(one, chain(linker, (1, 2), (3, 4))[-1])


def test_a_long_chain_is_compared_and_dropped_without_recursion():
    linker = Linker(b"secret")
    one, other = (chain(linker, *([(1, 2)] * 20_000))[-1] for _ in range(2))

    assert is_same(one, other)
    assert repr(one)
