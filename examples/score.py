"""How likely is a text? Prompt logprobs, summed. Run: python examples/score.py"""

from penstock import LLM, SamplingParams

llm = LLM("penstock-tiny")
for text in ("for i in range(10):", "for i on rainge(10):"):
    (output,) = llm.generate(text, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    rows = (output.prompt_logprobs or [])[1:]
    total = sum(
        row[token].logprob for token, row in zip(output.prompt_token_ids[1:], rows, strict=True) if row
    )
    print(f"{total:9.2f} nats  {text}")
