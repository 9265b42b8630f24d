"""A conversation, streamed: each answer goes back as the model's turn. Run: python examples/chat.py"""

from penstock import LLM, SamplingParams

llm = LLM("penstock-tiny")
talk = [{"role": "system", "content": "Answer in one sentence."}]
for question in ("What is a list?", "And a tuple?"):
    talk.append({"role": "user", "content": question})
    print(f"> {question}")
    answer = ""
    for piece in llm.stream(talk, SamplingParams(temperature=0.7, max_tokens=40, seed=1)):
        answer += piece.outputs[0].text
        print(piece.outputs[0].text, end="", flush=True)
    print()
    talk.append({"role": "assistant", "content": answer})
