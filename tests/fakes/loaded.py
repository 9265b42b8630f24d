"""A loaded model whose executor is a hash, as LLM and make_core take it."""

from collections.abc import Sequence
from types import SimpleNamespace

from tests.fakes.model import FakeExecutor, FakeModel, specs_of
from tests.fakes.tokenizer import END, VOCAB_SIZE, make_tokenizer

from penstock.model.generation import GenerationDefaults


def make_loaded(
    *,
    windows: Sequence[int | None] = (None,),
    block_size: int = 4,
    num_blocks: int = 64,
    max_requests: int = 8,
    max_step_tokens: int = 16,
    max_context: int = 64,
    chat_template: object = None,
    defaults: GenerationDefaults | None = None,
    prefix_cache: bool = True,
    policy: str = "fcfs",
    seed: int = 5,
) -> SimpleNamespace:
    model = FakeModel(windows=windows, block_size=block_size, vocab_size=VOCAB_SIZE)
    groups = specs_of(windows)
    return SimpleNamespace(
        spec=SimpleNamespace(
            vocab_size=VOCAB_SIZE,
            num_layers=len(groups),
            kv_groups=lambda: groups,
            is_causal=True,
            has_head=True,
        ),
        plan=SimpleNamespace(
            block_size=block_size,
            num_kv_blocks=(num_blocks + 1,) * len(groups),
            prefix_cache=prefix_cache,
            checkpoint_blocks=1,
            key_share=0.5,
            kv_dtype="float32",
            policy=policy,
            max_requests=max_requests,
            max_step_tokens=max_step_tokens,
            max_context=max_context,
            seed=seed,
        ),
        executor=FakeExecutor(model),
        tokenizer=make_tokenizer(),
        chat_template=chat_template,
        defaults=defaults or GenerationDefaults(eos_token_ids=(END,)),
        fingerprint="fake",
        pooling=SimpleNamespace(is_normalized=True),
    )
