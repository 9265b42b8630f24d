"""Continue several prompts in one batch. Run: python examples/complete.py"""

from penstock import LLM, SamplingParams

llm = LLM("penstock-tiny")
prompts = ["def fibonacci(n):", "class Stack:\n    def push(", "import json\n"]
for output in llm.generate(prompts, SamplingParams(temperature=0.8, max_tokens=40, seed=3), use_tqdm=False):
    print(output.prompt + output.outputs[0].text)
    print(
        "---",
        output.outputs[0].finish_reason,
        f"first token after {1000 * (output.metrics.ttft_s or 0):.0f} ms",
    )
