"""Program -> native recorded program: values get places in one arena by liveness, calls become native ops.

Called once per load by the cpu executor. Changes no arithmetic: a native op is the op of the same name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.backends.cpu.kernels import CPU, foresee
from penstock.kv.codec import CODECS, padded_dim
from penstock.model.program import Call, KVLayer, Program, StateLayer
from penstock.weights.loader import DTYPE_NAMES, LoadedWeights

BLOCK_TOKENS = 64
ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest step the program will ever see."""

    max_rows: int
    max_logit_rows: int
    num_blocks: tuple[int, ...]  # per KV group
    resident_experts: int = 0  # of each layer; 0: all


def block_bytes(layer: KVLayer | StateLayer) -> int:
    """Bytes of one 64-token block of one layer, all heads; states lie in whole lanes of 16 (StateLayer of
    kernels.h)."""
    if isinstance(layer, StateLayer):
        conv_width, head_dim = (-(-size // 16) * 16 for size in (layer.conv_width, layer.head_dim))
        states = layer.num_heads * layer.state_size * head_dim
        return 4 * (states + (layer.conv_size - 1) * conv_width)
    codec = CODECS[layer.dtype]
    token_bytes = codec.bytes_per_token(layer.head_dim, has_values=not layer.latent_dim)
    return BLOCK_TOKENS * layer.num_kv_heads * token_bytes


def plan_arena(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Offsets such that values alive at the same call never overlap (first fit, by birth), and the total.

    >>> plan_arena([4096, 4096, 4096], [(0, 1), (1, 2), (2, 3)])
    ([0, 4096, 0], 8192)
    """
    offsets: list[int] = []
    total = 0
    for index, (size, (birth, death)) in enumerate(zip(sizes, lifetimes, strict=True)):
        taken = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in range(index)
            if lifetimes[other][0] <= death and birth <= lifetimes[other][1]
        )
        at = 0
        for begin, end in taken:
            if at + size <= begin:
                break
            at = max(at, end)
        offsets.append(at)
        total = max(total, at + size)
    return offsets, total


STAGES = 4  # at most so many values in a row inside a call


@dataclass(frozen=True, slots=True)
class _Size:
    """A value's size: rows of fp32, or an operand of `kind`."""

    rows: int
    width: int
    kind: str | None

    @property
    def num_bytes(self) -> int:
        if self.kind is not None:
            return int(_native.operand_bytes(self.kind, self.rows, self.width))
        return -(-self.rows // 16) * 16 * self.width * 4 + 64


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Lowering:
    """Appends native ops call by call; `kernels.CPU` reads and fills it."""

    def __init__(
        self,
        program: Program,
        weights: LoadedWeights,
        kv_pools: Sequence[NDArray[np.uint8]],
        limits: Limits,
        *,
        isa: str,
        pool: "_native.Pool",
    ) -> None:
        self._program = program
        self._weights = weights
        self._kv_pools = kv_pools
        self._limits = limits
        self._values: dict[str, int] = {}
        self._widths: dict[str, int] = {}
        self.on_logit_rows: set[str] = set()
        # Every array a native op points into; the executor keeps this list alive as long as the program.
        self.kept: list[NDArray[np.generic]] = []
        self._inside: dict[str, tuple[_Size, ...]] = {}
        self._foreseen = self._next_routers()
        self._offsets, arena_bytes = self._plan()
        self.native = _native.Program(
            isa, pool, arena_bytes, program.spec.vocab_size, program.max_context, limits.max_rows,
            limits.max_logit_rows, list(limits.num_blocks),
        )  # fmt: skip
        calls = _with_hidden(program)
        self.hidden_place = calls.index(program.hidden)
        self.first_ops: list[int] = []  # of each call, and of the sampler: one call may be several native ops
        for call in calls:
            self.first_ops.append(self.native.num_ops)
            CPU[call.op.name](self, call)
            if call.output in self._foreseen:
                foresee(self, call, *self._foreseen[call.output])
        if program.spec.has_head:
            self.first_ops.append(self.native.num_ops)
        self.logits = self[program.calls[-1].output] if program.spec.has_head else -1
        if program.spec.has_head:
            self.native.sample(self.logits)

    def __getitem__(self, name: str | None) -> int:
        assert name is not None
        return self._values[name]

    def num_resident(self, num_experts: int) -> int:
        """How many experts of a layer are kept in memory."""
        return min(num_experts, self._limits.resident_experts or num_experts)

    def width(self, name: str | None) -> int:
        assert name is not None
        return self._widths[name]

    def follow_rows(self, call: Call, source: str | None) -> None:
        """The output has the rows of `source`: the step's, or those that need logits."""
        if source in self.on_logit_rows:
            self.on_logit_rows.add(call.output)

    def floats(self, call: Call, width: int) -> int:
        self._widths[call.output] = width
        value: int = self.native.floats(self._offsets[call.output], width, self._rows(call.output))
        self._values[call.output] = value
        return value

    def operand(self, call: Call, kind: str, k: int, *, num_heads: int = 1) -> int:
        """An operand `k` wide; of several heads one for each, its rows after those of the one before it."""
        self._widths[call.output] = num_heads * k
        rows = _rows_of_heads(self._rows(call.output), num_heads)
        value: int = self.native.operand(self._offsets[call.output], kind, k, rows)
        self._values[call.output] = value
        return value

    def values_inside(self, call: Call) -> list[int]:
        """Native values that a call of several native ops needs between them."""
        made: list[int] = []
        for index, value in enumerate(self._inside[call.output]):
            at = self._offsets[f"{call.output}#{index}"]
            if value.kind is None:
                made.append(self.native.floats(at, value.width, value.rows))
            else:
                made.append(self.native.operand(at, value.kind, value.width, value.rows))
        return made

    def embedding(self, name: str | None) -> tuple[NDArray[np.generic], str]:
        table = self._weights.embeddings[_weight_name(name)]
        self.kept.append(table)
        unsigned = table.view(np.uint16) if table.itemsize == 2 else table
        return unsigned, DTYPE_NAMES[table.dtype]

    def coded_embedding(self, name: str | None) -> tuple[NDArray[np.uint8], str, tuple[int, ...]] | None:
        """(panels, their format, [V,H]) of a table that is integer codes."""
        own = self._weights.coded_embeddings.get(_weight_name(name))
        if own is None:
            return None
        packed = self._weights.packed[_weight_name(name)]
        self.kept.append(packed)
        return packed, own, self._program.weights[_weight_name(name)].shape

    def vector(self, name: str | None) -> NDArray[np.float32] | None:
        if name is None:
            return None
        vector = self._weights.vectors[_weight_name(name)]
        self.kept.append(vector)
        return vector

    def packed(self, name: str | None) -> tuple[NDArray[np.uint8], str, tuple[int, ...]]:
        """(panels, their format, [N,K]) of a linear's weight."""
        packed = self._weights.packed[_weight_name(name)]
        self.kept.append(packed)
        use = self._program.weights[_weight_name(name)]
        assert use.format is not None
        return packed, use.format, use.shape

    def taps(self, name: str | None) -> NDArray[np.float32]:
        """A kernel [channels, 1, taps] the other way round, as the convolution reads it."""
        vector = self._weights.vectors[_weight_name(name)]
        turned = np.ascontiguousarray(vector.reshape(len(vector), -1).T).reshape(-1)
        self.kept.append(turned)
        return turned

    def state(self, name: str | None) -> tuple[NDArray[np.uint8], int, StateLayer]:
        """The same of a layer that keeps a state."""
        layer = next(k for k in self._program.state_layers if f"state.{k.layer}" == name)
        return self._kv_pools[layer.group], self._first_byte(layer), layer

    def _first_byte(self, layer: KVLayer | StateLayer) -> int:
        before = [k for k in self._program.kept if k.group == layer.group and k.layer < layer.layer]
        return sum(block_bytes(k) for k in before) * self._limits.num_blocks[layer.group]

    def constant(self, name: str | None) -> NDArray[np.float32] | None:
        if name is None:
            return None
        table = np.ascontiguousarray(self._program.constants[name], np.float32)
        self.kept.append(table)
        return table

    def kv(self, name: str | None) -> tuple[NDArray[np.uint8], int, KVLayer]:
        """(pool of the layer's group, where the layer begins in it, the layer)."""
        assert name is not None
        layers = {f"kv.{layer.layer}": layer for layer in self._program.kv_layers}
        layer = layers[name]
        return self._kv_pools[layer.group], self._first_byte(layer), layer

    def _rows(self, name: str) -> int:
        return self._limits.max_logit_rows if name in self.on_logit_rows else self._limits.max_rows

    def _plan(self) -> tuple[dict[str, int], int]:
        """Sizes from a dry walk of the program's shapes: no native program exists yet."""
        calls = _with_hidden(self._program)
        last_use = {call.output: index for index, call in enumerate(calls)}
        for index, call in enumerate(calls):
            for name in call.inputs:
                if name in last_use:
                    last_use[name] = index
        last_use[calls[-1].output] = len(calls)  # the sampler reads the logits
        last_use[self._program.hidden.output] = len(calls)  # and this is read when the step is over
        names, sizes, lifetimes = [], [], []
        widths: dict[str, int] = {}
        logit_rows: set[str] = set()
        for index, call in enumerate(calls):
            size = self._size(call, widths, logit_rows)
            names.append(call.output)
            sizes.append(_aligned(size))
            lifetimes.append((STAGES * index, STAGES * last_use[call.output] + STAGES - 1))
            inside = self._inside_of(call)
            if inside:
                self._inside[call.output] = inside
                for stage, value in enumerate(inside):
                    names.append(f"{call.output}#{stage}")
                    sizes.append(_aligned(value.num_bytes))
                    first = STAGES * index + stage
                    lifetimes.append((first, min(first + 1, STAGES * (index + 1) - 1)))
        offsets, total = plan_arena(sizes, lifetimes)
        return dict(zip(names, offsets, strict=True)), total

    def _next_routers(self) -> dict[str, tuple[Call, Call]]:
        """Where not all experts are resident: a layer's logits -> the next layer's calls that choose."""
        routes = [call for call in self._program.calls if call.op.name == "route"]
        makers = {call.output: call for call in self._program.calls}
        routers = [makers[str(route.inputs[0])] for route in routes]
        if all(self.num_resident(r) == r for r in map(self._num_experts, routers)):
            return {}
        return {router.output: (routers[i + 1], routes[i + 1]) for i, router in enumerate(routers[:-1])}

    def _num_experts(self, router: Call) -> int:
        return self._program.weights[_weight_name(router.inputs[1])].shape[0]

    def _inside_of(self, call: Call) -> "tuple[_Size, ...]":
        """Values between the native ops of one call, in order; each is read by the op after it."""
        if call.output in self._foreseen:
            router, route = self._foreseen[call.output]
            widths = self._num_experts(router), 2 * route.attrs["top_k"]
            return tuple(_Size(self._limits.max_rows, width, None) for width in widths)
        return self._inside_experts(call) if call.op.name == "expert_mlp" else ()

    def _inside_experts(self, call: Call) -> "tuple[_Size, ...]":
        """The operand by expert, gate and up, the next operand, the outputs by expert."""
        _, routing, gate_up, _, down, _ = call.inputs
        count, to = call.attrs["num_experts"], call.attrs["to"]
        (n_in, k_in), (n_out, k_out) = (
            self._program.weights[_weight_name(name)].shape for name in (gate_up, down)
        )
        maker = next(c for c in self._program.calls if c.output == routing)
        rows = _native.expert_rows(self._limits.max_rows, maker.attrs["top_k"], count)
        shapes = ((k_in, to), (n_in // count, None), (k_out, to), (n_out // count, None))
        return tuple(_Size(rows, width, kind) for width, kind in shapes)

    def _size(self, call: Call, widths: dict[str, int], logit_rows: set[str]) -> int:
        name, attrs = call.op.name, call.attrs
        first = call.inputs[0]
        if "step.logit_rows" in call.inputs or first in logit_rows:
            logit_rows.add(call.output)
        rows = self._limits.max_logit_rows if call.output in logit_rows else self._limits.max_rows
        if name in ("linear", "linear_add", "heads_linear"):
            width = self._program.weights[_weight_name(call.inputs[1])].shape[0]
        elif name in ("embed", "embed_positions"):
            width = self._program.weights[_weight_name(call.inputs[1])].shape[1]
        elif name in ("split_rope_write", "latent_rope_write"):
            width = attrs["num_heads"] * padded_dim(attrs["head_dim"])
        elif name == "join":
            width = widths[first or ""] + widths[call.inputs[1] or ""]
        elif name == "route":
            width = 2 * attrs["top_k"]
        elif name == "causal_conv":
            width = self._program.weights[_weight_name(call.inputs[1])].shape[0]
        elif name in ("attention", "selective_scan"):
            width = attrs["num_heads"] * (attrs.get("latent_dim") or attrs["head_dim"])
        else:
            width = widths[first or ""] // (2 if name == "gated_operand" else 1)
        widths[call.output] = width
        is_operand = name.endswith("operand") and call is not self._program.hidden
        heads = attrs["num_heads"] if name == "heads_operand" else 1
        kind = attrs["to"] if is_operand else None
        return _Size(_rows_of_heads(rows, heads), width // heads, kind).num_bytes


def _rows_of_heads(rows: int, num_heads: int) -> int:
    """Each head's rows begin at a whole tile."""
    return rows if num_heads == 1 else num_heads * (-(-rows // 16) * 16)


def _with_hidden(program: Program) -> tuple[Call, ...]:
    """The calls, that of the hidden rows before the first that takes the rows of logits, or at the end."""
    calls = program.calls
    place = next((i for i, call in enumerate(calls) if "step.logit_rows" in call.inputs), len(calls))
    return (*calls[:place], program.hidden, *calls[place:])


def _weight_name(name: str | None) -> str:
    assert name is not None
    return name.removeprefix("weights.")


def kv_pool_bytes(program: Program, num_blocks: Mapping[int, int] | Sequence[int]) -> list[int]:
    """Bytes of each KV group's pool."""
    return [
        sum(block_bytes(layer) for layer in program.kept if layer.group == group) * num_blocks[group]
        for group in range(len(program.kv_groups))
    ]
