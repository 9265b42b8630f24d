"""How many of a drafter's tokens a target would take: computed on text, without speculating.

Called by evaluate.py. Teacher-forced: at every place the drafter guesses from the true text before it. On the
target's own greedy text that is what speculation does, because a chain ends at its first wrong token.
"""

from collections.abc import Sequence

import torch
from tools.train.heads import CHAIN, FeatureHead, MedusaHeads, guesses
from tools.train.model import Decoder
from torch import Tensor


@torch.no_grad()
def draft_acceptance(target: Decoder, draft: Decoder, rows: Sequence[Tensor]) -> dict[str, float]:
    """Per token of held-out text: how often the argmaxes agree, and the expected acceptance at T = 1.

    At T = 1 a draft's token is taken with probability sum(min(p, q)) (Leviathan et al. 2023,
    arXiv:2211.17192).
    """
    equal, shared, count = 0, 0.0, 0
    for tokens in rows:
        p = torch.softmax(target.logits(tokens[None])[0].float(), dim=-1)
        q = torch.softmax(draft.logits(tokens[None])[0].float(), dim=-1)
        equal += int((p.argmax(dim=-1) == q.argmax(dim=-1)).sum())
        shared += float(torch.minimum(p, q).sum())
        count += len(tokens)
    return {"greedy": equal / count, "sampled": shared / count}


@torch.no_grad()
def chain_acceptance(
    target: Decoder,
    rows: Sequence[tuple[Tensor, int]],
    draft: Decoder,
    medusa: MedusaHeads,
    eagle: FeatureHead,
) -> dict[str, float]:
    """Mean tokens taken from chains of CHAIN, of each drafter, on the target's greedy text.

    `rows` are token rows and how many of their tokens were the prompt. A chain begins behind each token of
    the text: that token is the target's own; the chain is what follows it.
    """
    taken = {"draft": 0.0, "medusa": 0.0, "eagle": 0.0}
    count = 0
    embedding = target.embed_tokens.weight
    for tokens, num_prompt in rows:
        length = len(tokens) - CHAIN - 1
        if length <= num_prompt:
            continue
        hidden = target(tokens[None])
        truth = tokens.unfold(0, CHAIN, 1)[2 : 2 + length]  # [n]: the tokens at n + 2 .. n + 5
        drafted = draft.logits(tokens[None])[0].argmax(dim=-1)[1:].unfold(0, CHAIN, 1)[:length]
        by_head = torch.stack([guesses(feature, embedding)[0] for feature in medusa(hidden)], dim=-1)
        features = eagle(hidden, target.embed_tokens(tokens[None]), CHAIN)
        by_layer = torch.stack([guesses(feature, embedding)[0] for feature in features], dim=-1)
        for name, guessed in (("draft", drafted), ("medusa", by_head), ("eagle", by_layer)):
            is_right = (guessed[:length] == truth).int().cumprod(dim=-1)
            taken[name] += float(is_right[num_prompt - 1 :].sum())
        count += length - num_prompt + 1
    return {name: total / max(1, count) for name, total in taken.items()}
