"""The same request alone and in a batch, bit for bit, logprobs included. Run: python examples/same_bits.py"""

from penstock import LLM, SamplingParams

llm = LLM("penstock-tiny")
params = SamplingParams(temperature=1.0, max_tokens=32, seed=42, logprobs=2)
prompts = [f"def f{i}(x):\n" for i in range(16)]
(alone,) = llm.generate(prompts[5], params, use_tqdm=False)
among_others = llm.generate(prompts, params, use_tqdm=False)[5]
assert among_others.outputs[0].token_ids == alone.outputs[0].token_ids
assert among_others.outputs[0].logprobs == alone.outputs[0].logprobs
print(f"equal: {len(alone.outputs[0].token_ids)} tokens and their logprobs, {alone.system_fingerprint}")
