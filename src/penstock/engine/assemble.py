"""Loaded model -> EngineCore: KV manager, policy, scheduler and inputs around one executor."""

from collections.abc import Collection
from functools import partial

from penstock.engine.admission import eos_ids_of
from penstock.engine.build import Loaded
from penstock.engine.core import EngineCore
from penstock.engine.grammars import Grammars
from penstock.engine.inputs import InputBuilder
from penstock.engine.output_text import StopFinder
from penstock.engine.pooling import Pooler
from penstock.kv.groups import make_groups
from penstock.kv.manager import KVManager
from penstock.scheduler.policy import POLICIES
from penstock.scheduler.scheduler import Scheduler
from penstock.text.grammar_compiler import GrammarCompiler
from penstock.text.grammar_tokens import vocabulary_of
from penstock.text.tokenizer import Tokenizer


def make_core(loaded: Loaded) -> EngineCore:
    """A fresh engine core over a loaded model. One at a time: the executor has one KV memory."""
    plan, spec = loaded.plan, loaded.spec
    kv = KVManager(
        make_groups(spec.kv_groups(), [0] * spec.num_layers),
        plan.num_kv_blocks,
        block_size=plan.block_size,
        prefix_cache=plan.prefix_cache,
        cache_key=plan.kv_dtype,
        checkpoint_blocks=plan.checkpoint_blocks,
        tenant_share=plan.key_share,
    )
    stops = StopFinder(loaded.tokenizer)
    grammars = make_grammars(loaded.tokenizer, spec.vocab_size, eos_ids_of(loaded.defaults, loaded.tokenizer))
    scheduler = Scheduler(
        kv,
        POLICIES[plan.policy](),
        max_step_tokens=plan.max_step_tokens,
        max_requests=plan.max_requests,
        find_stop=stops,
        guide=grammars.guide,
        computes_whole=not spec.is_causal,
    )
    inputs = InputBuilder(
        scheduler.requests,
        num_groups=len(plan.num_kv_blocks),
        vocab_size=spec.vocab_size,
        grammars=grammars,
        pooler=Pooler(is_normalized=loaded.pooling.is_normalized),
    )
    return EngineCore(scheduler, inputs, loaded.executor.forward, stops=stops, grammars=grammars)


def make_grammars(tokenizer: Tokenizer, vocab_size: int, eos_ids: Collection[int]) -> Grammars:
    """Builds nothing before the first grammar comes."""

    def make_compiler() -> GrammarCompiler:
        vocabulary = vocabulary_of(tokenizer, vocab_size, eos_ids)
        return GrammarCompiler(vocabulary, partial(tokenizer.encode, add_special=False))

    return Grammars(make_compiler, vocab_size=vocab_size, eos_ids=sorted(eos_ids))
