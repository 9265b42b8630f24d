"""Cross-entropy of a tied head, in pieces that fit a processor's cache.

Called by model.py. The logits of a whole step would be hundreds of megabytes, read and written many times;
here each piece of rows gives its loss and its gradients while its logits are in cache.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

IGNORED = -100
_ROWS = 256


def token_loss(
    hidden: Tensor, head: Tensor, targets: Tensor, taught: tuple[Tensor, Tensor, float] | None = None
) -> Tensor:
    """Mean of -sum(q log p) over the rows of hidden[T,H] whose target counts; p = softmax(hidden head^T).

    q is the target itself, or, with taught = (hidden, head, share) of a teacher, that share of the
    teacher's probabilities and the rest of the target.
    """
    loss: Tensor = _TokenLoss.apply(hidden, head, targets, taught)  # type: ignore[no-untyped-call]
    return loss


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,  # Any: what autograd hands over
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        taught: tuple[Tensor, Tensor, float] | None,
    ) -> Tensor:
        counted = (targets != IGNORED).nonzero()[:, 0]
        share = taught[2] if taught is not None else 0.0
        hidden_gradient = torch.zeros_like(hidden)
        head_gradient = torch.zeros(head.shape, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32)
        for rows in counted.split(_ROWS):
            piece, wanted = hidden[rows], targets[rows][:, None]
            log_probabilities = torch.log_softmax(linear(piece, head).float(), dim=-1)
            total -= (1 - share) * log_probabilities.gather(1, wanted).sum()
            if taught is not None:
                goal = torch.softmax(linear(taught[0][rows], taught[1]).float(), dim=-1)
                total -= share * (goal * log_probabilities).sum()
            gradient = log_probabilities.exp_()
            if taught is not None:
                gradient.sub_(goal, alpha=share)
            gradient.scatter_add_(1, wanted, torch.full(wanted.shape, share - 1))
            rounded = gradient.to(hidden.dtype)
            hidden_gradient[rows] = rounded @ head
            head_gradient += rounded.T @ piece
        count = max(1, len(counted))
        context.save_for_backward(hidden_gradient.div_(count), head_gradient.div_(count).to(head.dtype))
        return total / count

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        hidden_gradient, head_gradient = context.saved_tensors
        return hidden_gradient * upstream, head_gradient * upstream, None, None
