"""Train the speculation heads on a frozen network: seeded, in goes of some minutes.

Called by __main__.py. The target's own text comes first, because that is what heads must guess; a part of the
corpus keeps them general. Heads that were trained for these very weights are trained on. Writes
`heads/medusa.safetensors` and `heads/eagle.safetensors` beside the weights.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tools.train.heads import CHAIN, FeatureHead, MedusaHeads
from tools.train.model import Decoder, document_mask
from tools.train.optimizer import MixedOptimizer
from tools.train.packing import IGNORED, Packer
from tools.train.recipe import TINY, Stage
from tools.train.sources import Document
from tools.train.token_loss import token_loss
from torch import Tensor, nn

_STAGE = Stage("heads", 4000, 4, 256, code=0.008, prose=0.0, chat=0.0, fim=0.0, own=1.0)
_UNROLLED = 3
_FITTED_STEPS = 16  # whose rows the feature head's beginning is fitted to
_RECIPE = replace(TINY, warmup_steps=5)
_GOING_ON = 0.5  # of the rates, where heads are trained on
_RATES = {"medusa": 0.05, "eagle": 0.015}  # one begins at nothing, the other close to its goal


def train_heads(
    target: Decoder,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    folder: Path,
    log: Path,
    *,
    num_steps: int = _STAGE.num_steps,
    max_minutes: float | None = None,
    from_nothing: bool = False,
) -> None:
    """Train both kinds at once, so that the target runs once for both; store them in bfloat16."""
    torch.set_num_threads(1)
    torch.manual_seed(_RECIPE.seed)
    target.requires_grad_(requires_grad=False)
    packer = Packer(tokenizer, documents, _STAGE, seed=_RECIPE.seed)
    eagle = FeatureHead(target.shape)
    heads = nn.ModuleDict({"medusa": MedusaHeads(target.shape), "eagle": eagle})
    digest, scale = digest_of(target), _GOING_ON
    if from_nothing or not go_on(heads, folder, digest):
        scale = 1.0
        rows = [torch.from_numpy(tokens) for tokens, _ in islice(packer.batches(0), _FITTED_STEPS)]
        eagle.begin_as(target, rows)
    rates = {name: scale * rate for name, rate in _RATES.items()}
    optimizers = [
        MixedOptimizer(head, replace(_RECIPE, muon_rate=rates[name], adam_rate=rates[name] / 5))
        for name, head in heads.items()
    ]
    heads.bfloat16()
    batches = packer.batches(0)
    started_s = time.monotonic()
    log.unlink(missing_ok=True)
    for step in range(num_steps):
        fraction = step / num_steps
        if max_minutes is not None:
            fraction = max(fraction, (time.monotonic() - started_s) / (60 * max_minutes))
        if fraction >= 1:
            break
        tokens, targets = (torch.from_numpy(array) for array in next(batches))
        losses = _losses(target, heads, tokens, targets)
        torch.stack(list(losses.values())).sum().backward()
        for optimizer in optimizers:
            optimizer.step(min(1.0, (step + 1) / _RECIPE.warmup_steps) * (1 - fraction))
        record = {"step": step, **{name: round(loss.item(), 4) for name, loss in losses.items()}}
        with log.open("a") as file:
            file.write(json.dumps({**record, "elapsed_s": round(time.monotonic() - started_s, 1)}) + "\n")
    store(heads, folder, digest)


def digest_of(target: Decoder) -> str:
    """Of the weights that heads are trained for."""
    weights = sha256()
    for tensor in target.state_dict().values():
        weights.update(tensor.view(torch.uint8).numpy().tobytes())
    return weights.hexdigest()


def go_on(heads: nn.ModuleDict, folder: Path, target: str) -> bool:
    """Take up stored heads, if they were trained for this target."""
    files = {name: folder / f"{name}.safetensors" for name in heads}
    for file in files.values():
        if not file.is_file():
            return False
        with safe_open(file, "pt") as stored:
            if (stored.metadata() or {}).get("target") != target:
                return False
    for name, head in heads.items():
        head.load_state_dict({key: tensor.float() for key, tensor in load_file(files[name]).items()})
    return True


def _losses(target: Decoder, heads: nn.ModuleDict, tokens: Tensor, targets: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        hidden = target(tokens, document_mask(tokens))
        embedded = target.embed_tokens(tokens)
    embedding = target.embed_tokens.weight
    losses = {}
    for number, feature in enumerate(heads["medusa"](hidden)):
        wanted = _every(CHAIN, number, _shifted(targets, number + 1))
        losses[f"medusa_{number}"] = token_loss(feature.flatten(0, 1), embedding, wanted.flatten())
    features = heads["eagle"](hidden, embedded, _UNROLLED)
    for step, feature in enumerate(features):
        places = slice(step + 1, step + 1 + feature.shape[1])
        wanted = _every(step + 1, 0, targets[:, places])
        taught = (hidden[:, places].flatten(0, 1), embedding, 0.9)
        losses[f"eagle_{step}"] = token_loss(feature.flatten(0, 1), embedding, wanted.flatten(), taught)
    return losses


def _shifted(targets: Tensor, places: int) -> Tensor:
    shifted = torch.full_like(targets, IGNORED)
    shifted[:, :-places] = targets[:, places:]
    return shifted


def _every(count: int, first: int, targets: Tensor) -> Tensor:
    """Keep one target of `count`: the vocabulary's matrix is most of the work of a head."""
    kept = torch.full_like(targets, IGNORED)
    kept[:, first::count] = targets[:, first::count]
    return kept


def store(heads: nn.ModuleDict, folder: Path, target: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, head in heads.items():
        weights = {key: tensor.detach().bfloat16().contiguous() for key, tensor in head.state_dict().items()}
        file = folder / f"{name}.safetensors"
        save_file(weights, file, metadata={"format": "pt", "chain": str(CHAIN), "target": target})
        file.chmod(0o644)
