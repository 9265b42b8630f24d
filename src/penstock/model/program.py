"""A program: the decoder pass as a flat list of calls over named values. Built once per loaded model.

Values: `step.*` (the batch), `weights.<name>`, `const.*` (rope tables), `kv.<layer>`, `state.<layer>`; all
else is an activation, flat [T, width]. The last call's output is `logits` [R,V], but of an encoder, which has
none; `hidden` is made on request.
Passes turn a Program into another with the same bits; backends run it; the planner prices it. Nothing here
computes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from penstock.model.spec import KVGroupSpec, ModelSpec
from penstock.ops.attention import attention
from penstock.ops.contract import Array, Cost, Dim, Op, Sizes
from penstock.ops.moe import expert_mlp
from penstock.weights.format import FORMATS

WeightKind = Literal["linear", "vector", "embedding"]


@dataclass(frozen=True, slots=True)
class Call:
    """`output = op(*inputs, **attrs)`. An optional input that is not there is None."""

    op: Op
    inputs: tuple[str | None, ...]
    output: str
    attrs: Mapping[str, Any]  # Any: plain JSON values, so that a program can be stored and diffed

    def __str__(self) -> str:
        attrs = [f"{name}={value!r}" for name, value in self.attrs.items()]
        return f"{self.output} = {self.op.name}({', '.join([str(name) for name in self.inputs] + attrs)})"


@dataclass(frozen=True, slots=True)
class WeightUse:
    """One `weights.<name>` of a program: checkpoint tensors `sources` (canonical names) stacked along N.

    Only a linear has a format: vectors (norms, biases) are float32, an embedding keeps its own dtype.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]  # of the stack: [N,K], [N] or [V,H]
    kind: WeightKind
    format: str | None = None


@dataclass(frozen=True, slots=True)
class KVLayer:
    """What `kv.<layer>` holds per token, and in which KV group its blocks are counted."""

    layer: int
    group: int
    num_kv_heads: int
    head_dim: int
    dtype: str  # a KV codec: float32 | bfloat16 | int8
    latent_dim: int = 0  # not 0: keys alone, whose first dims are the values

    @property
    def values_per_token(self) -> int:
        """How many numbers it holds of a token."""
        return self.num_kv_heads * self.head_dim * (1 if self.latent_dim else 2)


@dataclass(frozen=True, slots=True)
class StateLayer:
    """What `state.<layer>` holds in a block, float32: states of heads, what the convolution read last."""

    layer: int
    group: int
    num_heads: int
    head_dim: int
    state_size: int
    conv_width: int
    conv_size: int

    @property
    def values_per_block(self) -> int:
        states = self.num_heads * self.head_dim * self.state_size
        return states + (self.conv_size - 1) * self.conv_width


@dataclass(frozen=True, eq=False, slots=True)
class Program:
    """Calls in order, and everything that they name."""

    spec: ModelSpec
    calls: tuple[Call, ...]
    weights: Mapping[str, WeightUse]  # by name, without "weights."
    constants: Mapping[str, Array]  # by full name, "const.rope.0.cos"
    kv_layers: tuple[KVLayer, ...]
    state_layers: tuple[StateLayer, ...]
    kv_groups: tuple[KVGroupSpec, ...]
    max_context: int
    hidden: Call  # the last norm's float32 rows at `step.hidden_rows`; made in steps that ask for them

    @property
    def num_layers(self) -> int:
        return self.spec.num_layers

    @property
    def kept(self) -> tuple[KVLayer | StateLayer, ...]:
        """What each layer keeps, in order of layers."""
        return tuple(sorted((*self.kv_layers, *self.state_layers), key=lambda kept: kept.layer))

    def matrix_of(self, call: Call) -> WeightUse | None:
        """The packed matrix that a call multiplies by, if it does."""
        for name in call.inputs:
            if name is not None and name.startswith("weights."):
                use = self.weights[name.removeprefix("weights.")]
                if use.kind == "linear":
                    return use
        return None

    def fingerprint(self) -> str:
        """A hash of everything here that decides bits: ops, attributes, formats, constants."""
        digest = hashlib.sha256()
        for call in (*self.calls, self.hidden):
            digest.update(json.dumps([call.op.name, call.inputs, call.output, dict(call.attrs)]).encode())
        for use in self.weights.values():
            digest.update(json.dumps([use.name, use.sources, use.shape, use.format]).encode())
        for layer in self.kv_layers:
            digest.update(json.dumps([layer.layer, layer.group, layer.dtype, layer.latent_dim]).encode())
        for state in self.state_layers:
            digest.update(json.dumps([state.layer, state.group]).encode())
        for name, value in self.constants.items():
            digest.update(name.encode() + value.tobytes())
        return digest.hexdigest()

    def costs(self, sizes: Sizes) -> Iterator[tuple[Call, Cost]]:
        """The price of every call, weights as packed in their formats. `sizes` holds T, R, B and S, the
        tokens that a row attends to, on average."""
        shapes = self._shapes(sizes)
        element_bytes = {f"weights.{use.name}": self._weight_bytes(use) for use in self.weights.values()}
        element_bytes |= {f"kv.{k.layer}": _ELEMENT_BYTES[k.dtype] for k in self.kv_layers}
        for call in self.calls:
            bound = _bind(call, shapes, sizes)
            shapes[call.output] = tuple(dim.size(bound) for dim in call.op.output.dims or ())
            if call.op not in (attention, expert_mlp):  # their `to` is of what they make inside
                element_bytes[call.output] = _ELEMENT_BYTES[call.attrs.get("to", "float32")]
            named = zip((*call.op.inputs, call.op.output), (*call.inputs, call.output), strict=True)
            widths = {o.name: 0.0 if name is None else element_bytes.get(name, 4.0) for o, name in named}
            yield call, call.op.cost(bound, widths)

    def cost(self, sizes: Sizes) -> Cost:
        """The price of one step: the sum of `costs`."""
        total = Cost(0, 0)
        for _, cost in self.costs(sizes):
            total += cost
        return total

    def _weight_bytes(self, use: WeightUse) -> float:
        if use.format is not None:
            return FORMATS[use.format].bytes_per_weight(use.shape[-1])
        return 2.0 if use.kind == "embedding" and self.spec.dtype in {"float16", "bfloat16"} else 4.0

    def _shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            f"weights.{use.name}": use.shape for use in self.weights.values()
        }
        shapes |= {name: value.shape for name, value in self.constants.items()}
        shapes |= {"step.tokens": (sizes["T"],), "step.positions": (sizes["T"],)}
        shapes |= {
            "step.context_len": (sizes["B"],),
            "step.slots": (sizes["T"],),
            "step.path": (sizes["T"], 1),
        }
        shapes |= {"step.row_request": (sizes["T"],), "step.logit_rows": (sizes["R"],)}
        return shapes


_ELEMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0}


def _bind(call: Call, shapes: Mapping[str, tuple[int, ...]], sizes: Sizes) -> dict[str, int]:
    """The letters of a call: from the batch, the attributes, then the shapes of its inputs."""
    bound = dict(sizes)
    for operand, name in zip(call.op.inputs, call.inputs, strict=True):
        shape = shapes.get(name) if name is not None else None
        if shape and operand.dims and operand.dims[0].terms == (("T", 1),):
            bound["T"] = shape[0]  # past the last norm, the rows are the R that need logits
            break
    if "top_k" in call.attrs:
        bound["Z"] = call.attrs["top_k"]
    if "state_size" in call.attrs:
        bound["N"] = call.attrs["state_size"]
    if "head_dim" in call.attrs:
        bound["D"] = call.attrs["head_dim"]
        if "num_heads" in call.attrs:
            bound["Q"] = call.attrs["num_heads"] * bound["D"]
            bound["C"] = call.attrs.get("num_kv_heads", 1) * bound["D"]
            latent_dim = call.attrs.get("latent_dim", 0)
            bound["O"] = call.attrs["num_heads"] * (latent_dim or bound["D"])
            bound["E"] = bound["C"] * (1 if latent_dim else 2)
    for operand, name in zip(call.op.inputs, call.inputs, strict=True):
        shape = shapes.get(name) if name is not None else None
        for dim, size in zip(operand.dims or (), shape or (), strict=False):
            _solve(dim, size, bound)
    for operand, name in zip(call.op.inputs, call.inputs, strict=True):
        if name is None:
            for dim in operand.dims or ():
                for letter, _ in dim.terms:
                    bound.setdefault(letter, 0)
    return bound


def _solve(dim: Dim, size: int, bound: dict[str, int]) -> None:
    unknown = [(letter, times) for letter, times in dim.terms if letter not in bound]
    if len(unknown) == 1:
        rest = sum(times * bound[letter] for letter, times in dim.terms if letter in bound)
        bound[unknown[0][0]] = (size - rest) // unknown[0][1]


class Builder:
    """Collects calls. `builder(output, op, *inputs, **attrs)` appends one and returns its output's name."""

    def __init__(
        self, spec: ModelSpec, max_context: int, own_formats: Mapping[str, str] | None = None
    ) -> None:
        """`own_formats`: of weights (by canonical source) that the checkpoint stores as integer codes."""
        self._spec = spec
        self._max_context = max_context
        self._own_formats = own_formats or {}
        self._calls: list[Call] = []
        self._weights: dict[str, WeightUse] = {}
        self._constants: dict[str, Array] = {}
        self._kv_layers: list[KVLayer] = []
        self._state_layers: list[StateLayer] = []
        self._prefix = ""
        self._hidden: Call | None = None

    @property
    def hidden_size(self) -> int:
        return self._spec.hidden_size

    def scope(self, prefix: str) -> None:
        """Outputs and weights named from now on begin with `prefix`."""
        self._prefix = prefix

    def __call__(self, output: str, op: Op, *inputs: str | None, **attrs: Any) -> str:  # Any: JSON values
        assert len(inputs) == len(op.inputs), f"{op.name} takes {len(op.inputs)} inputs"
        output = self._prefix + output
        self._calls.append(Call(op, inputs, output, attrs))
        return output

    def tap(self, output: str, op: Op, *inputs: str | None, **attrs: Any) -> None:  # Any: JSON values
        """The call that makes hidden rows: beside the others, for steps that ask."""
        self._hidden = Call(op, inputs, output, attrs)

    def linear_weight(self, name: str, shape: tuple[int, int], format: str, source: str | None = None) -> str:
        own = self.format_of(source or self._prefix + name, format)
        return self._weight(name, shape, "linear", own, source)

    def experts_weight(
        self, name: str, shape: tuple[int, int], format: str, num_experts: int, parts: tuple[str, ...]
    ) -> str:
        """A matrix of all experts: `parts` of the first expert along N, then those of the next one."""
        full = self._prefix + name
        sources = tuple(f"{full}.{e}.{part}" for e in range(num_experts) for part in parts)
        own = self.format_of(sources[0], format)
        return self._keep(WeightUse(f"{full}.{'_'.join(parts)}", sources, shape, "linear", own))

    def experts_bias(self, name: str, size: int, num_experts: int, parts: tuple[str, ...]) -> str:
        """The biases of `experts_weight`."""
        full = self._prefix + name
        sources = tuple(f"{full}.{e}.{part}_bias" for e in range(num_experts) for part in parts)
        return self._keep(WeightUse(f"{full}.{'_'.join(parts)}_bias", sources, (size,), "vector"))

    def router_weight(self, name: str, shape: tuple[int, int]) -> str:
        """A matrix whose products decide what is computed: float32, whatever the plan says."""
        return self._weight(name, shape, "linear", "float32", None)

    def format_of(self, source: str, format: str) -> str:
        """The format of a matrix: the checkpoint's own codes, else `format`."""
        return self._own_formats.get(source, format)

    def tensor(self, name: str, shape: tuple[int, ...]) -> str:
        """A few float32 values of more than one dim, which no product reads."""
        return self._weight(name, shape, "vector", None, None)

    def vector(self, name: str, size: int) -> str:
        return self._weight(name, (size,), "vector", None, None)

    def embedding(self, name: str, shape: tuple[int, int]) -> str:
        return self._weight(name, shape, "embedding", None, None)

    def constant(self, name: str, value: Array) -> str:
        self._constants[f"const.{name}"] = value
        return f"const.{name}"

    def kv(self, layer: KVLayer) -> str:
        self._kv_layers.append(layer)
        return f"kv.{layer.layer}"

    def state(self, layer: StateLayer) -> str:
        self._state_layers.append(layer)
        return f"state.{layer.layer}"

    def finish(self) -> Program:
        has_logits = self._calls[-1].output == "logits"
        assert has_logits == self._spec.has_head, "a program ends with its logits, if it has any"
        assert self._hidden is not None, "a program can be asked for its hidden rows"
        return Program(
            spec=self._spec,
            calls=tuple(self._calls),
            weights=self._weights,
            constants=self._constants,
            kv_layers=tuple(self._kv_layers),
            state_layers=tuple(self._state_layers),
            kv_groups=self._spec.kv_groups(),
            max_context=self._max_context,
            hidden=self._hidden,
        )

    def _weight(
        self, name: str, shape: tuple[int, ...], kind: WeightKind, format: str | None, source: str | None
    ) -> str:
        name = self._prefix + name
        return self._keep(WeightUse(name, (source or name,), shape, kind, format))

    def _keep(self, use: WeightUse) -> str:
        self._weights[use.name] = use
        return f"weights.{use.name}"
