"""Muon for the matrices inside the network, AdamW for embedding and norms, over float32 masters.

Called by train.py and train_heads.py. The network computes in bfloat16; the masters kept here are what is
trained, and are copied into the network, rounded, after every step. Muon: Jordan et al. 2024, and Liu et al.
2025, arXiv:2502.16982.
"""

from collections import defaultdict
from typing import Any

import torch
from tools.train.recipe import Recipe
from torch import Tensor, nn

_MOMENTUM = 0.95
_BETAS = (0.9, 0.95)
_EPS = 1e-8
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class MixedOptimizer:
    """Holds the float32 masters and their moments; `step` mutates them and the network."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._recipe = recipe
        self._parameters = dict(model.named_parameters())
        self.masters = {
            name: parameter.detach().float().clone() for name, parameter in self._parameters.items()
        }
        self._first = {name: torch.zeros_like(master) for name, master in self.masters.items()}
        self._is_muon = {
            name: p.ndim == 2 and "embed_tokens" not in name for name, p in self._parameters.items()
        }
        self._second = {
            name: torch.zeros_like(m) for name, m in self.masters.items() if not self._is_muon[name]
        }
        self._num_steps = 0

    @torch.no_grad()
    def step(self, rate_scale: float) -> float:
        """Clip, update at `rate_scale` times the recipe's rates, forget the gradients; give their norm."""
        gradients = {name: p.grad.float() for name, p in self._parameters.items() if p.grad is not None}
        norm = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
        clip = min(1.0, self._recipe.max_grad_norm / (norm + 1e-6))
        self._num_steps += 1
        by_shape: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, gradient in gradients.items():
            gradient.mul_(clip)
            if self._is_muon[name]:
                by_shape[tuple(gradient.shape)].append(name)
            else:
                self._adam(name, gradient, rate_scale * self._recipe.adam_rate)
        for group in by_shape.values():
            self._muon(group, gradients, rate_scale * self._recipe.muon_rate)
        self.publish()
        for parameter in self._parameters.values():
            parameter.grad = None
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the network, rounded to its dtype."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.masters[name])

    def state(self) -> dict[str, Any]:  # tensors and one integer, as torch.save takes them
        return {
            "masters": self.masters,
            "first": self._first,
            "second": self._second,
            "num_steps": self._num_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.masters, self._first, self._second = state["masters"], state["first"], state["second"]
        self._num_steps = state["num_steps"]
        self.publish()

    def _adam(self, name: str, gradient: Tensor, rate: float) -> None:
        master, first, second = self.masters[name], self._first[name], self._second[name]
        first.lerp_(gradient, 1 - _BETAS[0])
        second.lerp_(gradient.square(), 1 - _BETAS[1])
        unbiased_first = first / (1 - _BETAS[0] ** self._num_steps)
        unbiased_second = second / (1 - _BETAS[1] ** self._num_steps)
        master.sub_(rate * unbiased_first / (unbiased_second.sqrt() + _EPS))

    def _muon(self, group: list[str], gradients: dict[str, Tensor], rate: float) -> None:
        updates = []
        for name in group:
            first = self._first[name].mul_(_MOMENTUM).add_(gradients[name])
            updates.append(gradients[name] + _MOMENTUM * first)
        directions = orthogonalized(torch.stack(updates))
        rows, columns = directions.shape[-2:]
        scale = rate * max(1.0, rows / columns) ** 0.5
        for name, direction in zip(group, directions, strict=True):
            self.masters[name].mul_(1 - rate * self._recipe.weight_decay).sub_(scale * direction)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Set every singular value of a stack of matrices near one, by five Newton-Schulz steps in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    upright: Tensor = x.mT if is_tall else x
    return upright.float()
