"""The reference executor: walks a program call by call in numpy. The definition of what is right.

`engine.build` makes one where no native backend is to be had; tests make them to judge the others. It
is slow, keeps keys and values as plain arrays, and takes any block size.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from penstock.errors import EngineError
from penstock.model.program import Program
from penstock.ops.attention import KVBlocks
from penstock.ops.contract import Array
from penstock.ops.state_space import StateBlocks
from penstock.step import SamplingRows, StepInput, StepOutput

NO_DRAFTS = "drafts cannot be taken back from a recurrent state; run this model without speculation."
Sampler = Callable[[Array, SamplingRows], StepOutput]


class ReferenceExecutor:
    """`program` over `weights`: float32 arrays by WeightUse name, unpacked (what their format stands for).

    `num_kv_blocks` has one entry per KV group. `sampler` draws from the logits [R,V]; by default the
    numpy twin of the native one.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Array],
        *,
        num_kv_blocks: Sequence[int],
        block_size: int,
        sampler: Sampler | None = None,
    ) -> None:
        missing = sorted(set(program.weights) - set(weights))
        if missing:
            raise EngineError(f"program needs weights that were not given: {', '.join(missing)}")
        for name, use in program.weights.items():
            if weights[name].shape != use.shape:
                raise EngineError(
                    f"weight {name} has shape {weights[name].shape}; its program needs {use.shape}"
                )
        self._program = program
        self._sampler = sampler or _default_sampler()
        self._state: dict[str, object] = dict(program.constants)
        for name in program.weights:
            self._state[f"weights.{name}"] = np.asarray(weights[name], np.float32)
        for layer in program.kv_layers:
            shape = (num_kv_blocks[layer.group], block_size, layer.num_kv_heads * layer.head_dim)
            keys = np.zeros(shape, np.float32)
            values = keys[..., : layer.latent_dim] if layer.latent_dim else np.zeros(shape, np.float32)
            self._state[f"kv.{layer.layer}"] = KVBlocks(keys, values)
        for kept in program.state_layers:
            count = num_kv_blocks[kept.group]
            inputs = np.zeros((count, kept.conv_size - 1, kept.conv_width), np.float32)
            states = np.zeros((count, kept.num_heads, kept.head_dim, kept.state_size), np.float32)
            self._state[f"state.{kept.layer}"] = StateBlocks(inputs, states, block_size)

    def weight(self, name: str) -> Array:
        """One of the weights it was given."""
        return np.asarray(self._state[f"weights.{name}"])

    def forward(self, step: StepInput) -> StepOutput:
        """Write the step's keys and values, draw a token for every row of `logit_rows`."""
        if self._program.state_layers and (step.parents is not None or step.moves):
            raise EngineError(NO_DRAFTS)
        self._move(step)
        values = self._state | {
            "step.slots": step.slots(),
            "step.path": None if step.parents is None else _paths(step),
            "step.tokens": step.tokens,
            "step.positions": step.positions,
            "step.context_len": step.context_len,
            "step.row_request": np.repeat(np.arange(len(step.context_len)), np.diff(step.query_start)),
            "step.logit_rows": step.logit_rows,
        }
        for group, table in enumerate(step.block_tables):
            values[f"step.block_table.{group}"] = table
        for call in self._program.calls:
            inputs = (None if name is None else values[name] for name in call.inputs)
            values[call.output] = call.op(*inputs, **call.attrs)
        if "hidden" in step.taps:
            hidden = self._program.hidden
            values["step.hidden_rows"] = _hidden_rows(step)
            inputs = (None if name is None else values[name] for name in hidden.inputs)
            values[hidden.output] = hidden.op(*inputs, **hidden.attrs)
        no_logits = np.zeros((0, self._program.spec.vocab_size), np.float32)
        output = self._sampler(np.asarray(values.get("logits", no_logits)), step.sampling)
        taps = {name: np.asarray(values[name]) for name in step.taps}
        return StepOutput(
            sampled=output.sampled,
            logprob=output.logprob,
            rank=output.rank,
            top_token=output.top_token,
            top_logprob=output.top_logprob,
            taps=taps,
        )

    def _move(self, step: StepInput) -> None:
        for layer in self._program.kv_layers if step.moves else ():
            kv = self._state[f"kv.{layer.layer}"]
            assert isinstance(kv, KVBlocks)
            for source, target in step.moves[layer.group]:
                for rows in (kv.keys, kv.values):
                    rows[divmod(target, kv.block_size)] = rows[divmod(source, kv.block_size)]

    def describe(self) -> Mapping[str, str]:
        """For `doctor` and the fingerprint. Every op is its numpy reference."""
        return {"backend": "reference", "isa": "", "kernels": f"numpy {np.__version__}"}


def _hidden_rows(step: StepInput) -> Array:
    return np.zeros(0, np.int32) if step.hidden_rows is None else step.hidden_rows


def _paths(step: StepInput) -> Array:
    """[T,J]: slots of the last J positions that each row reads; before its path keys are in place."""
    assert step.parents is not None
    slots, chains = step.slots(), []
    for row in range(len(step.tokens)):
        chain, at = [], row
        while at >= 0:
            chain.append(int(slots[at]))
            at = int(step.parents[at])
        chains.append(chain)
    longest = max(map(len, chains))
    path = np.empty((len(chains), longest), np.int32)
    for row, chain in enumerate(chains):
        before = range(int(step.positions[row]) - len(chain), int(step.positions[row]) - longest, -1)
        path[row] = [*chain, *(max(0, p) for p in before)][::-1]
    return path


def _default_sampler() -> Sampler:
    from penstock.sampling.sampler import sample

    return sample
