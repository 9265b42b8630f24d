"""Two ways for a trained network to guess its own next tokens: Medusa-style heads and an EAGLE-like layer.

Called by train_heads.py and acceptance.py. Both read the network's last hidden rows (after the final norm)
and share its embedding as their head. Medusa: Cai et al. 2024, arXiv:2401.10774. EAGLE: Li et al. 2024,
arXiv:2401.15077; steps trained on the layer's own features as in EAGLE-3, arXiv:2503.01840.
docs/heads.md documents the stored format.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from tools.train.model import MLP, Decoder, RMSNorm, document_mask, rope, rotate
from tools.train.recipe import ModelShape
from torch import Tensor, nn
from torch.nn.functional import linear, silu

CHAIN = 4
_RIDGE = 1e-4  # of the squares of what is known, so that directions no text uses stay small
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class MedusaHeads(nn.Module):
    """Head k: x + silu(W_k x + b_k), then the target's own head, guesses the token k + 2 places on."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.medusa = nn.ModuleList(nn.Linear(width, width) for _ in range(CHAIN))
        for head in self.medusa:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, hidden: Tensor) -> list[Tensor]:
        return [hidden + silu(head(hidden)) for head in self.medusa]


class FeatureHead(nn.Module):
    """One decoder layer over fc([embedding of the next token; hidden row]) that guesses the next hidden row.

    `forward` unrolls a chain from every place of a text at once: step 1 attends to true features of the
    places before, each later step to the same and to its own chain.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = replace(shape, num_layers=1)
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.fc = nn.Linear(2 * shape.hidden_size, shape.hidden_size, bias=False)
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    @torch.no_grad()
    def begin_as(self, target: Decoder, rows: Sequence[Tensor]) -> None:
        """Start as the target's last layer and final norm, over the best linear guess of what enters them.

        Token and hidden row -> the row that enters the last layer one place on: least squares over `rows`.
        """
        last = target.layers[-1]
        for ours, theirs in (
            (self.mlp, last.mlp),
            (self.norm, target.norm),
            (self.input_layernorm, last.input_layernorm),
            (self.post_attention_layernorm, last.post_attention_layernorm),
            *((getattr(self, name), getattr(last.self_attn, name)) for name in _PROJECTIONS),
        ):
            ours.load_state_dict(theirs.state_dict())
        width = self.shape.hidden_size
        products, wanted = torch.zeros(2 * width, 2 * width), torch.zeros(2 * width, width)
        entering: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
        for tokens in rows:
            hidden = target(tokens, document_mask(tokens))
            known = (
                torch.cat((target.embed_tokens(tokens[:, 1:]), hidden[:, :-1]), dim=-1).flatten(0, 1).float()
            )
            products += known.T @ known
            wanted += known.T @ entering.pop()[:, 1:].flatten(0, 1).float()
        hook.remove()
        ridge = _RIDGE * products.diagonal().diag()
        self.fc.weight.copy_(torch.linalg.solve(products + ridge, wanted).T)

    def forward(self, hidden: Tensor, embedded: Tensor, num_steps: int) -> list[Tensor]:
        """Give features[s][rows, n]: step s of the chain that begins at place n, n < length - num_steps.

        hidden[rows, length, H] are the target's rows, embedded[rows, length, H] its tokens' embeddings.
        Feature s at n stands for the hidden row at n + s + 1; it has seen tokens up to there.
        """
        length = hidden.shape[1] - num_steps
        cos, sin = rope(hidden.shape[1], self.shape, hidden.dtype)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        feature, features = hidden[:, :length], []
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for step in range(num_steps):
            places = slice(step, step + length)
            x = self.fc(torch.cat((embedded[:, step + 1 : step + 1 + length], feature), dim=-1))
            normed = self.input_layernorm(x)
            q = rotate(self._heads(self.q_proj(normed)), cos[places], sin[places])
            keys.append(self._repeated(rotate(self._heads(self.k_proj(normed)), cos[places], sin[places])))
            values.append(self._repeated(self._heads(self.v_proj(normed))))
            x = x + self.o_proj(_chain_attention(q, keys, values, causal))
            x = x + self.mlp(self.post_attention_layernorm(x))
            feature = self.norm(x)
            features.append(feature)
        return features

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.shape.head_dim).transpose(1, 2)

    def _repeated(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.shape.num_heads // self.shape.num_kv_heads, dim=1)


def guesses(features: Tensor, embedding: Tensor) -> Tensor:
    """The likeliest token of every feature."""
    return linear(features, embedding).argmax(dim=-1)


def _chain_attention(q: Tensor, keys: list[Tensor], values: list[Tensor], causal: Tensor) -> Tensor:
    """Attend to step 1 of all places up to one's own and to the later steps of one's own chain."""
    scale = q.shape[-1] ** -0.5
    true_scores = (q @ keys[0].mT * scale).masked_fill(~causal, float("-inf"))
    own_scores = [(q * key).sum(dim=-1, keepdim=True) * scale for key in keys[1:]]
    weights = torch.softmax(torch.cat((true_scores, *own_scores), dim=-1).float(), dim=-1).to(q.dtype)
    length = q.shape[2]
    y = weights[..., :length] @ values[0]
    for number, value in enumerate(values[1:]):
        y = y + weights[..., length + number, None] * value
    return y.transpose(1, 2).flatten(2)
