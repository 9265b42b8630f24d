"""Seam: checkpoints whose matrices are integer codes spread over ordinary tensors, as config.json says.

Called by engine.build with config.json's `quantization_config`. A scheme turns the tensors of a matrix
(codes, scales, zero points) into one CodedTensor under the matrix's own name, without loss, or refuses.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ModelLoadError
from penstock.registry import Registry
from penstock.weights.reader import Checkpoint, Tensor
from penstock.weights.safetensors_file import shown

Config = Mapping[str, Any]  # Any: foreign JSON, checked by the scheme
SCALE_GROUPS: Final = (32, 64, 128)


class Scheme(Protocol):
    """Contract (tests/unit/weights/test_schemes.py): codes, scales and zero points are the checkpoint's own;
    every key of the config is read, known to compute nothing, or refused by name.
    """

    def rewrite(self, tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        """`tensors` with a CodedTensor for each matrix that is stored as codes."""
        ...


SCHEMES: Registry[Scheme] = Registry("quantization scheme", "penstock.weights.schemes")


def with_codes(checkpoint: Checkpoint, config: object) -> Checkpoint:
    """The checkpoint with its matrices as they are meant; None is no config."""
    if config is None:
        return checkpoint
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(method, str) or method not in SCHEMES:
        refuse(f"quant_method {shown(method)} is not read; known are {', '.join(SCHEMES)}")
    return replace(checkpoint, tensors=SCHEMES[method].rewrite(checkpoint.tensors, config))


def refuse(why: str, code: str = "bad_config") -> NoReturn:
    raise ModelLoadError(code, f"quantization_config: {why}.")


def check_keys(config: Config, read: set[str], inert: set[str]) -> None:
    """Refuse a key that nobody knows: it may say how the codes are meant."""
    for key in config:
        if key not in read and key not in inert:
            refuse(f"key {shown(key)} is not known and may change what the codes mean")


def group_size(config: Config, k: int) -> int:
    """K that share a scale, for a matrix of this K: -1 means all of it."""
    size = config.get("group_size")
    if type(size) is not int or (size != -1 and size < 1):
        refuse(f"group_size is {shown(size)}; it must be a whole number, or -1")
    return k if size == -1 else size


def spread(values: NDArray[Any], group: int, name: str) -> tuple[NDArray[Any], int]:
    """Scales or zeros [groups, N] of a group that formats have: a wide group is several of 128 alike."""
    if group in SCALE_GROUPS:
        return values, group
    if group % SCALE_GROUPS[-1]:
        refuse(f"groups of {group} of {shown(name)}; 32, 64 and multiples of 128 are read")
    return np.repeat(values, group // SCALE_GROUPS[-1], axis=0), SCALE_GROUPS[-1]


def half_scales(scales: Tensor, name: str) -> NDArray[np.float16]:
    """The scales as fp16, if that loses nothing."""
    assert isinstance(scales, np.ndarray)
    wide = scales.astype(np.float32)
    half = wide.astype(np.float16)
    if not (half.astype(np.float32) == wide).all():
        refuse(f"scales of {shown(name)} are {scales.dtype} that fp16 does not hold", "dtype_unsupported")
    return half


def bits_of(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """[..., words of 32 bits] -> [..., words * 32 / bits]: the lowest bits first."""
    if bits == 8:
        return np.ascontiguousarray(words).view(np.uint8)
    pairs = np.ascontiguousarray(words).view(np.uint8)
    return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:-1], -1)


def matrix_of(tensors: Mapping[str, Tensor], name: str, dtypes: tuple[str, ...], num_dims: int) -> np.ndarray:
    """A tensor that must be there with this many dimensions."""
    found = tensors.get(name)
    if not isinstance(found, np.ndarray):
        raise ModelLoadError("missing_tensor", f"tensor {shown(name)} is not in the checkpoint.")
    if str(found.dtype) not in dtypes or found.ndim != num_dims or 0 in found.shape:
        raise ModelLoadError(
            "shape_mismatch",
            f"tensor {shown(name)} is {found.dtype} {list(found.shape)}: no codes.",
        )
    return found
