"""A trained network -> the beginning of another: a larger one, or a draft's embedding.

Called by __main__.py and train.py. Depth: every layer is followed by copies of itself that write nothing yet,
so the deeper network computes what the shallow one did (Chen et al. 2015, arXiv:1511.05641). Vocabulary: a
token that the old tokenizer has keeps its row; another takes the mean of the rows of the pieces it used to
be. A draft takes its teacher's embedding on the axes that carry most of it.
"""

import torch
from tokenizers import Tokenizer
from torch import Tensor

_WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def num_layers_of(weights: dict[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in weights if name.startswith("layers.")})


def deepened(weights: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Spread the layers evenly over `num_layers`; every one that is new is silent."""
    old = num_layers_of(weights)
    if num_layers < old:
        raise ValueError(f"{old} layers cannot become {num_layers}; a network only grows")
    grown = {name: tensor for name, tensor in weights.items() if not name.startswith("layers.")}
    origins = [place * old // num_layers for place in range(num_layers)]
    for place, origin in enumerate(origins):
        is_new = place > 0 and origins[place - 1] == origin
        for name, tensor in weights.items():
            if name.startswith(f"layers.{origin}."):
                part = name.removeprefix(f"layers.{origin}.")
                is_silent = is_new and part in _WRITES
                grown[f"layers.{place}.{part}"] = torch.zeros_like(tensor) if is_silent else tensor.clone()
    return grown


def with_vocabulary(rows: Tensor, old: Tokenizer, new: Tokenizer) -> Tensor:
    """Give an embedding for the ids of `new` from one for the ids of `old`."""
    known = old.get_vocab()
    grown = torch.empty(new.get_vocab_size(), rows.shape[1], dtype=rows.dtype)
    for token, number in new.get_vocab().items():
        pieces = [known[token]] if token in known else _pieces(token, old)
        grown[number] = rows[pieces].mean(dim=0)
    return grown


def draft_beginning(rows: Tensor, width: int) -> dict[str, Tensor]:
    """Give a draft's embedding, and a final norm with which its first logits are about one at most."""
    narrow = narrowed(rows, width)
    scale = 1 / (width**0.5 * narrow.norm(dim=-1).mean())
    return {"embed_tokens.weight": narrow, "norm.weight": scale.expand(width).clone()}


def narrowed(rows: Tensor, width: int) -> Tensor:
    """Give the rows on their `width` main axes: what keeps most of every product of two of them."""
    _, _, axes = torch.linalg.svd(rows.float(), full_matrices=False)
    return rows.float() @ axes[:width].T


def _pieces(token: str, old: Tokenizer) -> list[int]:
    return [piece.id for piece in old.model.tokenize(token)]
