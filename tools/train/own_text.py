"""What a model of ours writes, through the engine and its public API.

Called by __main__.py (texts that a draft is distilled on) and evaluate.py (functions, chats, the target's
greedy text). Loading takes the same path as any checkpoint.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from tools.train.sources import Document

_OPENING_CHARS = 500
_BATCH = 32
_NUM_TEXTS, _TEXT_TOKENS = 288, 192  # at each temperature
_TEMPERATURES = (0.0, 0.0, 0.6, 0.0)  # speculation meets greedy text most often


def continued(
    folder: Path,
    prompts: Sequence[str | list[int]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
) -> list[tuple[list[int], list[int], str]]:
    """Give each prompt's tokens, the tokens that the model adds, and their text. The same on every run."""
    from penstock import LLM, SamplingParams

    llm = LLM(str(folder), threads=1, max_requests=_BATCH)
    params = [
        SamplingParams(max_tokens=max_tokens, temperature=temperature, stop=stop, seed=seed + number)
        for number in range(len(prompts))
    ]
    asked = [prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt} for prompt in prompts]
    given = llm.generate(asked, params)
    return [
        (list(one.prompt_token_ids), list(one.outputs[0].token_ids), one.outputs[0].text) for one in given
    ]


def step_seconds(folders: Sequence[Path], *, rounds: int = 3) -> list[float]:
    """Least time of the engine's native call for one token of each model: one thread, 128 tokens before it.

    The models take turns, so that what else a machine does meets all of them.
    """
    from penstock.bench.workload import Bench
    from penstock.config import EngineConfig
    from penstock.engine.build import load_model

    benches = [Bench(load_model(str(folder), EngineConfig(threads=1))) for folder in folders]
    least = [float("inf")] * len(benches)
    for _ in range(rounds):
        for number, bench in enumerate(benches):
            ns = bench.profile_decode(1, 128, 32)[:, :, 1].sum(axis=1)
            least[number] = min(least[number], float(ns.min()) / 1e9)
    return least


def openings(documents: Sequence[Document], count: int, seed: int) -> list[str]:
    """Pieces of `count` documents, each beginning at a line: what a model is to go on from."""
    chance = random.Random(seed)
    found = []
    for document in chance.choices(documents, k=count):
        first = document.text.rfind("\n", 0, chance.randrange(len(document.text))) + 1
        piece = document.text[first : first + _OPENING_CHARS]
        found.append(piece[: piece.rfind("\n") + 1] or piece)
    return found


def own_documents(folder: Path, documents: Sequence[Document], stored: Path) -> list[Document]:
    """Let the model in `folder` go on from openings of `documents`, once, at each of a few temperatures."""
    if not stored.is_file():
        code = [document for document in documents if document.kind == "code"]
        texts = []
        for seed, temperature in enumerate(_TEMPERATURES):
            begun = openings(code, _NUM_TEXTS, seed)
            written = continued(folder, begun, max_tokens=_TEXT_TOKENS, temperature=temperature, seed=seed)
            texts += [opening + text for opening, (_, _, text) in zip(begun, written, strict=True)]
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(texts))
    return [
        Document(f"own/{number}", "own", text) for number, text in enumerate(json.loads(stored.read_text()))
    ]
