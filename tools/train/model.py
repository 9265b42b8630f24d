"""The Llama-shaped network that tools/train trains, in plain torch.

Called by train.py, heads.py and evaluate.py. Parameter names are those of a Hugging Face Llama checkpoint,
so that export is a copy. It has no KV cache and refuses nothing: inference is the engine's work.
"""

from collections.abc import Iterator

import torch
from tools.train.attention import attend
from tools.train.recipe import ModelShape
from tools.train.token_loss import token_loss
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

BEGIN_ID = 0  # of the token that begins a document; tokenizer.py gives it the first id


class RMSNorm(nn.Module):
    """y = x / rms(x) * weight, over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, (x.shape[-1],), self.weight, self._eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (halves rotated, as Llama checkpoints expect).

    Causal; where `bias` [rows, length, length] is given, it is added to the scores.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self._heads, self._kv_heads, self._width = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, self._heads * self._width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, self._kv_heads * self._width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, self._kv_heads * self._width, bias=False)
        self.o_proj = nn.Linear(self._heads * self._width, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self._heads, self._width).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, self._kv_heads, self._width).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self._kv_heads, self._width).transpose(1, 2)
        group = self._heads // self._kv_heads
        k = rotate(k, cos, sin).repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        q = rotate(q, cos, sin)
        if bias is None:
            y = scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scaled = q * self._width**-0.5
            y = attend(scaled.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias).view(q.shape)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))
        return out


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embedding, layers, final norm. `forward` returns hidden rows; the head is the embedding, tied."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` [rows, length, length] says what each token may see; without it, all that is before it."""
        x = self.embed_tokens(tokens)
        cos, sin = rope(tokens.shape[1], self.shape, x.dtype)
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(~mask, float("-inf"))
        for layer in self.layers:
            x = layer(x, cos, sin, bias)
        out: Tensor = self.norm(x)
        return out

    def logits(self, tokens: Tensor) -> Tensor:
        return linear(self(tokens), self.embed_tokens.weight)

    def loss(
        self, tokens: Tensor, targets: Tensor, teacher: "Decoder | None" = None, teaching: float = 0.0
    ) -> Tensor:
        """Mean nats per target, each document of a row seen alone; a target of -100 does not count.

        With a teacher, `teaching` of each target's weight goes to the teacher's probabilities.
        """
        mask = document_mask(tokens)
        hidden = self(tokens, mask).flatten(0, 1)
        taught = None
        if teacher is not None and teaching > 0:
            with torch.no_grad():
                taught = (teacher(tokens, mask).flatten(0, 1), teacher.embed_tokens.weight, teaching)
        return token_loss(hidden, self.embed_tokens.weight, targets.flatten(), taught)

    def checkpoint_names(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter under the name that `LlamaForCausalLM` gives it."""
        for name, parameter in self.named_parameters():
            yield f"model.{name}", parameter


def init_weights(model: Decoder, seed: int) -> None:
    """Normal, 0.02; what writes to the residual stream is scaled down by sqrt(2 * layers) (GPT-2)."""
    generator = torch.Generator().manual_seed(seed)
    residual_scale = (2 * model.shape.num_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = residual_scale if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(parameter, std=0.02 * scale, generator=generator)


def document_mask(tokens: Tensor) -> Tensor:
    """Say for every row of tokens what each may see: itself and what is before it in its own document."""
    documents = (tokens == BEGIN_ID).cumsum(dim=1)
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    return (documents[:, :, None] == documents[:, None, :]) & causal


def rope(length: int, shape: ModelShape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
