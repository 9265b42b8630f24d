"""Blocks of several tenants against a model that counts everything anew: who pays is never a matter of luck.

A share is never exceeded at others' expense: a block goes that is of a tenant within its share only when no
tenant beyond its own, the one that takes included, has an unused one.
"""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.kv.block_pool import BlockPool

TENANTS = st.sampled_from(["a", "a", "b", "c"])


class PoolOfTenants(RuleBasedStateMachine):
    @initialize(num_usable=st.integers(2, 9), share=st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]))
    def begin(self, num_usable, share):
        self.evicted = []
        self.pool = BlockPool(num_usable + 1, self.evicted.append, tenant_share=share)
        self.most = max(1, int(num_usable * share))
        self.owner, self.users, self.cached = {}, Counter(), set()
        self.unused = []  # least recently used first

    @rule(tenant=TENANTS, is_cached=st.booleans())
    def take(self, tenant, is_cached):
        self.evicted.clear()
        is_full = len(self.owner) == self.pool.num_usable
        block = self.pool.take(tenant)
        if block is None:
            assert is_full and not self.unused
            return
        if is_full:
            assert self.evicted == [block]
            self.check_victim(block, tenant)
            self.unused.remove(block)
            self.cached.discard(block)
        else:
            assert self.evicted == [] and block not in self.owner
        self.owner[block] = tenant
        self.users[block] = 1
        if is_cached:
            self.pool.cache(block)
            self.cached.add(block)

    def check_victim(self, block, tenant):
        held = Counter(self.owner.values())
        held[tenant] += 1
        payers = {t for t in held if held[t] > self.most and any(self.owner[b] == t for b in self.unused)}
        if len(set(self.owner.values())) == 1:
            payers = set()
        most = max((held[t] for t in payers), default=0)
        payers = {t for t in payers if held[t] == most}
        mine = [b for b in self.unused if not payers or self.owner[b] == self.owner[block]]

        assert not payers or self.owner[block] in payers, "a tenant within its share pays for another"
        assert block == mine[0], "not the least recently used"

    def some(self, blocks, index):
        found = sorted(blocks)
        return found[index % len(found)]

    @precondition(lambda self: any(self.users.values()))
    @rule(index=st.integers(0, 20))
    def release(self, index):
        block = self.some((b for b in self.users if self.users[b]), index)
        self.pool.release(block)
        self.users[block] -= 1
        if not self.users[block]:
            if block in self.cached:
                self.unused.append(block)
            else:
                del self.owner[block]

    @precondition(lambda self: self.cached)
    @rule(index=st.integers(0, 20))
    def share(self, index):
        block = self.some(self.cached, index)
        self.pool.share(block)
        if block in self.unused:
            self.unused.remove(block)
        self.users[block] += 1

    @precondition(lambda self: self.cached)
    @rule(index=st.integers(0, 20))
    def uncache(self, index):
        block = self.some(self.cached, index)
        self.pool.uncache(block)
        self.cached.remove(block)
        if block in self.unused:
            self.unused.remove(block)
            del self.owner[block]

    @invariant()
    def counts_agree(self):
        if not hasattr(self, "pool"):
            return
        assert self.pool.find_fault() is None
        for tenant in "abc":
            assert self.pool.num_held(tenant) == Counter(self.owner.values())[tenant]
        assert self.pool.num_cached == len(self.unused)


TestPoolOfTenants = PoolOfTenants.TestCase
TestPoolOfTenants.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.slow
class TestPoolOfTenantsThoroughly(PoolOfTenants.TestCase):
    settings = settings(max_examples=2_000, stateful_step_count=100, deadline=None)
