"""A checkpoint's tensors under the names that families read: fused and stacked ones split, transposed turned.

`engine.build` wraps what a reader found, so that the loader sees one tensor per weight, whatever the lineage
stored. Nothing is copied before it is asked for, and then one tensor at a time. Refuses a fused tensor whose
rows are not the sum of its parts.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from penstock.errors import ModelLoadError
from penstock.model.names import Names
from penstock.model.spec import LatentAttentionSpec, LayerSpec, ModelSpec, MoESpec

Tensor = (
    Any  # an array of the checkpoint's dtype, or codes that a reader found, which are passed on as they are
)

FORMS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {  # how arrays are stored -> as they are used
    "transposed": lambda x: x.swapaxes(-1, -2) if x.ndim > 1 else x,  # [K,N]; biases are as they are
    "flattened": lambda x: x.reshape(-1),  # a vector with two dims
    "row": lambda x: x.reshape(1, -1),  # a matrix of one row, with one dim or two
    "widened": lambda x: x[..., None, :],  # without the dim of one that it had before the last
    "shifted": lambda x: x.astype(np.float32) - 1,  # a vector with 1 added
    "exponential": lambda x: np.log(-x.astype(np.float64)).astype(np.float32),  # -exp(x)
}
JOINED: Final = "joined"  # the matrices of all heads in a stack: codes, too, are then under each other
_PART: Final = re.compile(r"(.+)\[(.+)\]")
_OF_EACH_HEAD: Final = frozenset({"attn.q_nope", "attn.q_rope", "attn.k_up", "attn.v_up"})


def unfold(tensors: Mapping[str, Tensor], names: Names, spec: ModelSpec) -> Mapping[str, Tensor]:
    """`tensors`, with the names and shapes that `names.checkpoint_name` promises for `spec`."""
    return _Unfolded(tensors, names, spec) if names.changes_tensors else tensors


class _Unfolded(Mapping[str, Tensor]):
    def __init__(self, tensors: Mapping[str, Tensor], names: Names, spec: ModelSpec) -> None:
        self._tensors = tensors
        self._names = names
        prefix = names.optional_prefix
        lacks_prefix = bool(prefix) and not any(name.startswith(prefix) for name in tensors)
        self._makers: dict[str, Callable[[], Tensor]] = {}
        for name in tensors:
            bare = lacks_prefix and name != names.top.get("lm_head")
            known = f"{prefix}{name}" if bare else name
            for old, new in names.renamed.items():
                known = known.replace(old, new)
            self._makers[known] = partial(self._whole, known, name)
        for table, other in names.gains.items():
            self._add_first_row(table, other)
        for index, layer in enumerate(spec.layers):
            self._split(names.layer_prefix.format(index), layer)
            if isinstance(layer.mlp, MoESpec):
                self._unstack(names.layer_prefix.format(index), layer.mlp.num_experts)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._makers[name]()
        return np.ascontiguousarray(tensor) if isinstance(tensor, np.ndarray) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def _whole(self, name: str, stored: str) -> Tensor:
        tensor = self._tensors[stored]
        for pattern, form in self._names.forms.items():
            if re.fullmatch(pattern, name) is None:
                continue
            if form == JOINED:
                tensor = tensor.reshape(-1, tensor.shape[-1])
            else:
                tensor = FORMS[form](_array(tensor, name))
        return tensor

    def _split(self, prefix: str, layer: LayerSpec) -> None:
        """Put the parts of this layer in the place of the tensors that hold them."""
        rows_before: dict[str, int] = {}
        for canonical, name in self._names.layer.items():
            match = _PART.fullmatch(name)
            if match is not None and prefix + match[1] in self._makers:
                begin = rows_before.get(match[1], 0)
                end = begin + _rows(match[2], layer)
                rows_before[match[1]] = end
                whole, groups = self._makers[prefix + match[1]], self._groups(match[2], layer)
                part = partial(_part, whole, groups, begin // groups, end // groups)
                is_turned = canonical in self._names.turned
                self._makers[prefix + name] = partial(_turned, part, name, groups) if is_turned else part
            elif "{}" in name:
                self._stack(prefix + name, _rows(canonical, layer) // layer.attention.head_dim)
        for tensor, rows in rows_before.items():
            shape = self._makers.pop(prefix + tensor)().shape
            if not shape or shape[0] != rows:
                raise ModelLoadError(
                    "shape_mismatch",
                    f"tensor {prefix + tensor} has shape {list(shape)}, config.json wants {rows} rows; "
                    "weights and config belong to different models.",
                )

    def _groups(self, part: str, layer: LayerSpec) -> int:
        """Among how many heads the parts of a tensor take turns."""
        if part in _OF_EACH_HEAD:
            return layer.mixer.num_heads
        return layer.attention.num_kv_heads if self._names.is_grouped else 1

    def _add_first_row(self, table: str, other: str) -> None:
        """Let every row of `table` gain the first of `other`: in float32, which holds the sum best."""
        whole, first = self._makers.get(table), self._makers.pop(other, None)
        if whole is None:
            return  # the loader says what is missing
        if first is None:
            raise ModelLoadError(
                "missing_tensor", f"tensor {other} is not in the checkpoint; download it again, whole."
            )
        self._makers[table] = lambda: (
            _array(whole(), table).astype(np.float32) + _array(first(), other)[:1].astype(np.float32)
        )

    def _unstack(self, prefix: str, num_experts: int) -> None:
        """Put a tensor for each expert, and each part of it, in the place of the one that holds them all."""
        for stored, parts in self._names.stacked.items():
            if prefix + stored not in self._makers:
                continue
            whole = self._makers.pop(prefix + stored)
            shape = whole().shape
            if len(shape) not in (2, 3) or shape[0] != num_experts or shape[1] % len(parts):
                raise ModelLoadError(
                    "shape_mismatch",
                    f"tensor {prefix + stored} has shape {list(shape)}, config.json wants {num_experts} "
                    f"experts; weights and config belong to different models.",
                )
            rows = shape[1] // len(parts)
            for expert in range(num_experts):
                for index, part in enumerate(parts):
                    name = prefix + part.replace("*", str(expert))
                    begin, step = (index, len(parts)) if self._names.takes_turns else (index * rows, 1)
                    self._makers[name] = partial(
                        _of_expert, whole, expert, slice(begin, begin + (rows - 1) * step + 1, step)
                    )

    def _stack(self, name: str, count: int) -> None:
        """One vector out of one for each head."""
        parts = [self._makers.pop(name.format(head), None) for head in range(count)]
        found = [part for part in parts if part is not None]
        if len(found) == count:
            self._makers[name] = lambda: np.concatenate([part() for part in found])


def _array(tensor: Tensor, name: str) -> Tensor:
    if not isinstance(tensor, np.ndarray):
        problem = f"tensor {name} is stored as codes, in one piece with others or turned"
        raise ModelLoadError("unsupported_format", f"{problem}; convert a checkpoint of floats instead.")
    return tensor


def _part(whole: Callable[[], Tensor], groups: int, begin: int, end: int) -> Tensor:
    """Rows [begin, end) of every group."""
    tensor = whole()
    if not isinstance(tensor, np.ndarray):
        firsts = np.arange(groups)[:, None] * (tensor.shape[0] // groups)
        return tensor.take((firsts + np.arange(begin, end)).reshape(-1))
    grouped = tensor.reshape(groups, -1, *tensor.shape[1:])
    return grouped[:, begin:end].reshape(-1, *tensor.shape[1:])


def _turned(part: Callable[[], Tensor], name: str, groups: int) -> Tensor:
    """Every head's matrix transposed, those of all heads under each other."""
    stored = _array(part(), name)
    return stored.reshape(groups, -1, stored.shape[1]).swapaxes(1, 2).reshape(-1, len(stored) // groups)


def _of_expert(whole: Callable[[], Tensor], expert: int, rows: slice) -> Tensor:
    """Rows of one expert, where they lie."""
    return whole()[expert, rows]


def _rows(canonical: str, layer: LayerSpec) -> int:
    """How many rows a weight of a layer has; of a norm of queries or keys, how many values."""
    if canonical in {"mlp.gate", "mlp.up"}:
        assert layer.mlp is not None, "its layers have no MLP"
        return layer.mlp.intermediate_size
    if isinstance(layer.mixer, LatentAttentionSpec):
        return _rows_of_latents(canonical, layer.mixer)
    attention = layer.attention
    heads = attention.num_heads if canonical in {"attn.q", "attn.q_norm"} else attention.num_kv_heads
    return heads * attention.head_dim


def _rows_of_latents(canonical: str, spec: LatentAttentionSpec) -> int:
    """The same where keys and values are latents, as stored."""
    return {
        "attn.q_nope": spec.num_heads * spec.nope_dim,
        "attn.q_rope": spec.num_heads * spec.rope_dim,
        "attn.latent": spec.latent_dim,
        "attn.k_rope": spec.rope_dim,
        "attn.k_up": spec.num_heads * spec.nope_dim,
        "attn.v_up": spec.num_heads * spec.value_dim,
    }[canonical]
