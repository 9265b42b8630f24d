"""Checkpoint -> what executors hold: packed matrices, fp32 vectors, the embedding's own rows.

Called by engine.build with plain requests (this room knows no model). Every tensor of the checkpoint is
used, declared inert, or refused by name; every value is finite. Peak memory: the packed weights, plus the
pages of the source being read (mapped, evictable).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from penstock.errors import ModelLoadError
from penstock.weights import packed
from penstock.weights.arena import reserve
from penstock.weights.coding import CodedBlocks, CodedRows, Coding, join_rows
from penstock.weights.format import FORMATS, PANEL_COLUMNS
from penstock.weights.reader import Checkpoint, CodedTensor, Tensor
from penstock.weights.safetensors_file import shown

DTYPE_NAMES = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "float16",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
}

CODES_AT_A_TIME = 4 << 20  # decoded: a few bytes each
BLOCKS_AT_A_TIME = 32 << 20  # codes whose blocks are packed as they lie: at most a copy of them

# (source rows [n,k], its dtype, format, out bytes) -> are all source values finite
Packer = Callable[[NDArray[np.generic], str, str, NDArray[np.uint8]], bool]
# (codes, format, out bytes) -> are all scales finite
CodePacker = Callable[[CodedRows | CodedBlocks, str, NDArray[np.uint8]], bool]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One weight of the program: checkpoint tensors stacked along their first axis."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    kind: Literal["linear", "vector", "embedding"]
    format: str | None = None


@dataclass(slots=True)
class LoadedWeights:
    packed: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    embeddings: dict[str, NDArray[np.generic]] = field(default_factory=dict)  # the checkpoint's own bytes
    coded_embeddings: dict[str, str] = field(default_factory=dict)  # name -> format: packed, as the linears
    notes: list[str] = field(default_factory=list)  # one line each, for start-up
    was_cached: bool = False


def pack_with_numpy(rows: NDArray[np.generic], dtype: str, format: str, out: NDArray[np.uint8]) -> bool:
    """The packer of machines without the native build: right, and slow."""
    del dtype
    values = rows.astype(np.float32)
    if not np.isfinite(values).all():
        return False
    out[:] = FORMATS[format].pack(values)
    return True


def pack_codes_with_numpy(codes: CodedRows | CodedBlocks, format: str, out: NDArray[np.uint8]) -> bool:
    """As pack_with_numpy."""
    assert isinstance(codes, CodedRows), "blocks are for those who pass a packer"
    coding: Coding = FORMATS[format].coding  # type: ignore[attr-defined]  # a coded one, says _check
    out[:] = coding.pack(codes)
    return codes.is_finite()


def panel_bytes(format: str, k: int) -> int:
    return round(FORMATS[format].bytes_per_weight(k) * PANEL_COLUMNS * k)


def packed_bytes(wanted: Wanted) -> int:
    n, k = wanted.shape
    assert wanted.format is not None
    return -(-n // PANEL_COLUMNS) * panel_bytes(wanted.format, k)


def load(
    checkpoint: Checkpoint,
    wanted: Sequence[Wanted],
    *,
    is_inert: Callable[[str], bool],
    pack: Packer = pack_with_numpy,
    pack_codes: CodePacker | None = None,
    cache: Path | None = None,
    verify: bool = False,
    mapped: Collection[str] = (),
) -> LoadedWeights:
    """Everything `wanted`. `cache`: where packed weights are kept, if anywhere. `verify`: scan all anew.

    `mapped`: matrices that stay in the file of the cache, and are read as they are touched.
    `pack_codes`: takes a file's blocks too; without it codes are packed by numpy, right and slow.
    """
    _check(checkpoint.tensors, wanted, is_inert)
    out = LoadedWeights()
    for want in wanted:
        if want.kind == "vector":
            parts = [_floats(checkpoint.tensors[source]).astype(np.float32) for source in want.sources]
            out.vectors[want.name] = np.ascontiguousarray(np.concatenate(parts))
            _refuse_unless(bool(np.isfinite(out.vectors[want.name]).all()), want)
    linears = [want for want in wanted if want.kind == "linear"]
    same: dict[str, str] = {}  # coded embedding -> the linear that is packed from the same codes
    for want in wanted:
        if want.kind != "embedding":
            continue
        table = checkpoint.tensors[want.sources[0]]
        if not isinstance(table, CodedTensor):
            out.embeddings[want.name] = table
            continue
        out.coded_embeddings[want.name] = table.format
        twin = (linear.name for linear in linears if linear.sources == want.sources)
        same[want.name] = next(twin, want.name)
        if same[want.name] == want.name:
            linears.append(replace(want, kind="linear", format=table.format))
    sizes = {want.name: packed_bytes(want) for want in linears}
    contents = {want.name: (str(want.format), want.shape, want.sources) for want in linears}
    path = packed.path_of(cache, packed.key_of(checkpoint.source_hash, contents)) if cache else None
    if path is not None and not verify and (found := packed.load(path, sizes, mapped)) is not None:
        out.packed, out.was_cached = found, True
        out.packed |= {name: found[twin] for name, twin in same.items()}
        return out
    for want in wanted:
        if want.name in out.embeddings:
            _refuse_unless(_is_finite(out.embeddings[want.name]), want)
    by_name = {want.name: want for want in linears}

    def fill(name: str, room: NDArray[np.uint8]) -> None:
        want = by_name[name]
        coded = _coded_sources(checkpoint.tensors, want)
        if coded:
            finite = _pack_codes(coded, want, room, pack_codes)
        else:
            finite = _pack(checkpoint.tensors, want, room, pack)
        _refuse_unless(finite, want)

    if mapped:
        assert path is not None, "the planner maps nothing where nothing is kept"
        packed.make(path, sizes, fill)
        checkpoint.check_unchanged()
        kept = packed.load(path, sizes, mapped)
        if kept is None:
            raise ModelLoadError("io_error", f"{path}: packed weights cannot be read back; check the disk.")
        out.packed = kept
    else:
        memory = reserve(sum(sizes.values()))
        at = 0
        for name, size in sizes.items():
            out.packed[name] = memory[at : at + size]
            at += size
            fill(name, out.packed[name])
        checkpoint.check_unchanged()
        if path is not None and (failure := packed.save(path, out.packed)):
            out.notes.append(failure)
    out.packed |= {name: out.packed[twin] for name, twin in same.items()}
    return out


def _floats(tensor: Tensor) -> NDArray[np.generic]:
    assert not isinstance(tensor, CodedTensor), "only matrices have codes, says _check"
    return tensor


def _coded_sources(tensors: Mapping[str, Tensor], want: Wanted) -> list[CodedTensor]:
    return [tensor for tensor in map(tensors.__getitem__, want.sources) if isinstance(tensor, CodedTensor)]


def _pack(tensors: Mapping[str, Tensor], want: Wanted, out: NDArray[np.uint8], pack: Packer) -> bool:
    assert want.format is not None
    parts = [_floats(tensors[source]) for source in want.sources]
    if len({part.dtype for part in parts}) > 1:
        parts = [part.astype(np.float32) for part in parts]  # which holds all of them exactly
    if any(part.shape[0] % PANEL_COLUMNS for part in parts[:-1]):
        parts = [np.concatenate(parts)]  # a panel would straddle two sources
    per_panel = panel_bytes(want.format, want.shape[1])
    at = 0
    finite = True
    for part in parts:
        size = -(-part.shape[0] // PANEL_COLUMNS) * per_panel
        finite &= pack(part, DTYPE_NAMES[part.dtype], want.format, out[at : at + size])
        at += size
    return finite


def _pack_codes(
    parts: Sequence[CodedTensor], want: Wanted, out: NDArray[np.uint8], pack_codes: CodePacker | None
) -> bool:
    """A few panels at a time, wherever in the stack of `parts` their rows are."""
    name, (n, k) = str(want.format), want.shape
    if pack_codes is None:
        pack_codes = pack_codes_with_numpy
    elif all(part.blocks for part in parts) and not any(part.shape[0] % PANEL_COLUMNS for part in parts[:-1]):
        return _pack_blocks(parts, name, out, pack_codes)
    per_panel = panel_bytes(name, k)
    step = max(1, CODES_AT_A_TIME // (k * PANEL_COLUMNS)) * PANEL_COLUMNS
    finite = True
    for begin in range(0, n, step):
        first, last = begin // PANEL_COLUMNS, -(-min(begin + step, n) // PANEL_COLUMNS)
        rows = _rows_of(parts, begin, min(begin + step, n))
        finite &= pack_codes(rows, name, out[first * per_panel : last * per_panel])
    return finite


def _pack_blocks(
    parts: Sequence[CodedTensor], name: str, out: NDArray[np.uint8], pack_codes: CodePacker
) -> bool:
    """Blocks as they lie in the file, part by part: each but the last fills whole panels."""
    at, finite = 0, True
    for part in parts:
        assert part.blocks is not None, "says the caller"
        n, k = part.shape
        step = max(1, BLOCKS_AT_A_TIME // (k * PANEL_COLUMNS)) * PANEL_COLUMNS
        for begin in range(0, n, step):
            end = min(begin + step, n)
            size = -(-(end - begin) // PANEL_COLUMNS) * panel_bytes(name, k)
            finite &= pack_codes(part.blocks(slice(begin, end)), name, out[at : at + size])
            at += size
    return finite


def _rows_of(parts: Sequence[CodedTensor], begin: int, end: int) -> CodedRows:
    """Rows [begin, end) of the stack."""
    found, at = [], 0
    for part in parts:
        first, last = max(begin - at, 0), min(end - at, part.shape[0])
        if first < last:
            found.append(part.decode(slice(first, last)))
        at += part.shape[0]
    return join_rows(found)


def _is_finite(table: NDArray[np.generic]) -> bool:
    """Without a float32 copy of the table: an exponent of all ones is NaN or Inf."""
    masks = {
        "float32": (np.uint32, 0x7F800000),
        "float16": (np.uint16, 0x7C00),
        "bfloat16": (np.uint16, 0x7F80),
    }
    unsigned, mask = masks[DTYPE_NAMES[table.dtype]]
    rows_per_chunk = max(1, (16 << 20) // max(1, table[0].nbytes))
    for begin in range(0, len(table), rows_per_chunk):
        bits = table[begin : begin + rows_per_chunk].view(unsigned)
        if ((bits & unsigned(mask)) == unsigned(mask)).any():
            return False
    return True


def _refuse_unless(finite: bool, want: Wanted) -> None:
    if not finite:
        raise ModelLoadError(
            "nan_weights",
            f"{' + '.join(want.sources)}: holds NaN or Inf, so answers would be noise; download it again.",
        )


def _check(tensors: Mapping[str, Tensor], wanted: Sequence[Wanted], is_inert: Callable[[str], bool]) -> None:
    used: set[str] = set()
    for want in wanted:
        used.update(want.sources)
        rows = 0
        for source in want.sources:
            if source not in tensors:
                raise ModelLoadError(
                    "missing_tensor",
                    f"tensor {source} is not in the checkpoint; it may be incomplete, download it again.",
                )
            tensor = tensors[source]
            if isinstance(tensor, CodedTensor):
                if want.kind == "vector" or want.format not in (None, tensor.format):
                    raise ModelLoadError(
                        "dtype_unsupported",
                        f"tensor {source} holds {tensor.format} codes, not {want.format or 'floats'}; "
                        f"use a checkpoint that quantizes its matrices alike.",
                    )
            elif tensor.dtype not in DTYPE_NAMES:
                raise ModelLoadError(
                    "dtype_unsupported",
                    f"tensor {source} is {tensor.dtype}; convert it to float32, float16 or bfloat16.",
                )
            if tensor.ndim != len(want.shape) or tensor.shape[1:] != want.shape[1:]:
                raise ModelLoadError(
                    "shape_mismatch",
                    f"tensor {source} has shape {list(tensor.shape)}, config.json wants {list(want.shape)}; "
                    f"weights and config belong to different models.",
                )
            rows += tensor.shape[0]
        if rows != want.shape[0]:
            raise ModelLoadError(
                "shape_mismatch",
                f"{' + '.join(want.sources)}: {rows} rows, config.json asks for {want.shape[0]}; "
                f"weights and config belong to different models.",
            )
    extra = sorted(name for name in tensors if name not in used and not is_inert(name))
    if extra:
        raise ModelLoadError(
            "bad_index",
            f"{len(extra)} tensors are not part of this architecture (first: {shown(extra[0])}); "
            f"serving without them would be another model.",
        )
