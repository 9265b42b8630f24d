"""Loaded model -> EngineCore: KV manager, policy, scheduler and inputs around one executor."""

from penstock.engine.build import Loaded
from penstock.engine.core import EngineCore
from penstock.engine.inputs import InputBuilder
from penstock.engine.output_text import StopFinder
from penstock.kv.groups import make_groups
from penstock.kv.manager import KVManager
from penstock.scheduler.policy import POLICIES
from penstock.scheduler.scheduler import Scheduler


def make_core(loaded: Loaded) -> EngineCore:
    """A fresh engine core over a loaded model. One at a time: the executor has one KV memory."""
    plan, spec = loaded.plan, loaded.spec
    kv = KVManager(
        make_groups(spec.kv_groups(), [0] * spec.num_layers, block_size=plan.block_size),
        plan.num_kv_blocks,
        block_size=plan.block_size,
        prefix_cache=plan.prefix_cache,
        cache_key=plan.kv_dtype,
    )
    stops = StopFinder(loaded.tokenizer)
    scheduler = Scheduler(
        kv,
        POLICIES[plan.policy](),
        max_step_tokens=plan.max_step_tokens,
        max_requests=plan.max_requests,
        find_stop=stops,
    )
    inputs = InputBuilder(scheduler.requests, num_groups=len(plan.num_kv_blocks), vocab_size=spec.vocab_size)
    return EngineCore(scheduler, inputs, loaded.executor.forward, stops=stops)
