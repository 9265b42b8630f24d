"""The training loop: seeded, resumable from a kill, logged as JSON lines.

Called by __main__.py. Everything a step does follows from the recipe, the corpus and the step's number;
the checkpoint holds masters, moments and that number. A time limit may end a stage early; the numbers of
steps that were then taken are in the log, and a recipe with those numbers repeats the run. A network grows
where its recipe says so, and a stage's weights are kept when it ends, for a later run to go on from.
"""

import json
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tools.train.export import write_checkpoint
from tools.train.grow import deepened, num_layers_of
from tools.train.model import Decoder, init_weights
from tools.train.optimizer import MixedOptimizer
from tools.train.packing import Packer
from tools.train.recipe import Recipe, Stage
from tools.train.sources import Document
from torch import Tensor

_SAVE_EVERY_S = 60.0
_MARGIN = 0.9  # of the time a stage may still take, when its steps are counted


@dataclass(frozen=True, slots=True)
class Places:
    """Where a run keeps its state and where it exports to."""

    work: Path
    model: Path

    @property
    def state(self) -> Path:
        return self.work / "state.pt"

    @property
    def log(self) -> Path:
        return self.work / "log.jsonl"

    def stage(self, name: str) -> Path:
        return self.work / f"{name}.safetensors"


@dataclass(slots=True)
class Progress:
    """How far a run is; saved with the weights."""

    done: dict[str, int] = field(default_factory=dict)
    planned: dict[str, int] = field(default_factory=dict)
    elapsed_s: float = 0.0
    num_tokens: int = 0


class Run:
    """One training run. `train` returns when the last stage is over and the checkpoint is written.

    `start` gives weights to begin with, under the names of Decoder: all of them, or an embedding alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        documents: list[Document],
        places: Places,
        *,
        start: Callable[[], dict[str, Tensor]] | None = None,
        teacher: Decoder | None = None,
        time_limit_s: float | None = None,
        is_compiled: bool = True,
        export_every_s: float = 300.0,
    ) -> None:
        torch.set_num_threads(recipe.num_threads)
        self._recipe, self._tokenizer, self._documents, self._places = recipe, tokenizer, documents, places
        self._time_limit_s, self._export_every_s = time_limit_s, export_every_s
        self._is_compiled, self._teacher = is_compiled, teacher
        self._progress = Progress()
        self._recent: deque[tuple[float, int]] = deque(
            maxlen=40
        )  # seconds and tokens of steps: the speed now
        self._places.work.mkdir(parents=True, exist_ok=True)
        if self._places.state.is_file():
            self._resume()
        else:
            self._places.log.unlink(missing_ok=True)
            self._build(start() if start is not None else {})
        self._saved_s = self._exported_s = self._progress.elapsed_s

    def _build(self, weights: dict[str, Tensor]) -> None:
        num_layers = num_layers_of(weights) or self._recipe.shape.num_layers
        self._model = Decoder(replace(self._recipe.shape, num_layers=num_layers))
        init_weights(self._model, self._recipe.seed)
        self._model.load_state_dict(weights, strict=num_layers_of(weights) > 0)
        self._optimizer = MixedOptimizer(self._model, self._recipe)
        self._model.bfloat16()
        if self._is_compiled:
            for layer in self._model.layers:
                layer.compile(dynamic=False)

    def train(self) -> Progress:
        share = 0.0
        for stage in self._recipe.stages:
            share += stage.time_share
            self._train_stage(
                stage, until_s=None if self._time_limit_s is None else share * self._time_limit_s
            )
        self._save()
        self._export()
        return self._progress

    def _train_stage(self, stage: Stage, *, until_s: float | None) -> None:
        done, planned = self._progress.done, self._progress.planned
        if stage.name not in planned:
            done[stage.name] = 0
            planned[stage.name] = self._num_steps(stage, until_s)
        if done[stage.name] >= planned[stage.name]:
            return
        if stage.num_layers > self._model.shape.num_layers:
            self._build(deepened(self._optimizer.masters, stage.num_layers))
        for tokens, targets in self._batches(stage, done[stage.name]):
            if until_s is not None and self._progress.elapsed_s > until_s:
                planned[stage.name] = done[stage.name]
            if done[stage.name] >= planned[stage.name]:
                break
            fraction = done[stage.name] / planned[stage.name]
            scale = stage.first_rate + (stage.last_rate - stage.first_rate) * fraction
            warmup = min(1.0, (sum(done.values()) + 1) / self._recipe.warmup_steps)
            self._step(stage, done[stage.name], tokens, targets, scale * warmup)
            done[stage.name] += 1
            self._keep()
        self._save()
        weights = {name: tensor.bfloat16() for name, tensor in self._optimizer.masters.items()}
        save_file(weights, self._places.stage(stage.name))

    def _step(
        self, stage: Stage, number: int, tokens: torch.Tensor, targets: torch.Tensor, scale: float
    ) -> None:
        started_s = time.monotonic()
        loss = self._model.loss(tokens, targets, self._teacher, stage.teaching)
        loss.backward()
        norm = self._optimizer.step(scale)
        step_s = time.monotonic() - started_s
        self._progress.elapsed_s += step_s
        self._progress.num_tokens += tokens.numel()
        self._recent.append((step_s, tokens.numel()))
        record = {
            "stage": stage.name,
            "step": number,
            "loss": round(loss.item(), 5),
            "rate_scale": round(scale, 5),
            "grad_norm": round(norm, 4),
            "step_s": round(step_s, 3),
            "elapsed_s": round(self._progress.elapsed_s, 1),
            "num_tokens": self._progress.num_tokens,
        }
        with self._places.log.open("a") as log:
            log.write(json.dumps(record) + "\n")

    def _batches(self, stage: Stage, first_step: int) -> Any:  # an iterator of pairs of tensors
        packer = Packer(self._tokenizer, self._documents, stage, seed=self._recipe.seed)
        return ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in packer.batches(first_step))

    def _num_steps(self, stage: Stage, until_s: float | None) -> int:
        """Plan a stage: what the recipe says, or what the time allows at the speed so far."""
        progress = self._progress
        if until_s is None or stage.is_constant or not self._recent:
            return stage.num_steps
        token_s = statistics.median(seconds / tokens for seconds, tokens in self._recent)
        step_s = token_s * stage.rows_per_step * stage.row_tokens
        return max(1, min(stage.num_steps, int(_MARGIN * (until_s - progress.elapsed_s) / step_s)))

    def _keep(self) -> None:
        elapsed_s = self._progress.elapsed_s
        if elapsed_s - self._saved_s > _SAVE_EVERY_S:
            self._saved_s = elapsed_s
            self._save()
        if elapsed_s - self._exported_s > self._export_every_s:
            self._exported_s = elapsed_s
            self._export()

    def _export(self) -> None:
        write_checkpoint(self._places.model, self._model, self._tokenizer)

    def _save(self) -> None:
        partial = self._places.state.with_suffix(".partial")
        torch.save({"optimizer": self._optimizer.state(), "progress": asdict(self._progress)}, partial)
        partial.replace(self._places.state)

    def _resume(self) -> None:
        state = torch.load(self._places.state, weights_only=True)
        self._build(state["optimizer"]["masters"])
        self._optimizer.load_state(state["optimizer"])
        self._progress = Progress(**state["progress"])
        done = sum(self._progress.done.values())
        lines = self._places.log.read_text().splitlines(keepends=True)[:done]
        self._places.log.write_text("".join(lines))
        records = [json.loads(line) for line in lines[-41:]]
        for before, after in pairwise(records):
            self._recent.append((after["step_s"], after["num_tokens"] - before["num_tokens"]))
