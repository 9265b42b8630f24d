"""Rotary positions in config.json: both spellings in circulation -> RopeSpec.

The old one is `rope_theta` beside `rope_scaling: {type | rope_type, ...}`; the newer one, of transformers 5,
is `rope_parameters: {rope_type, rope_theta, ...}`. Unknown kinds and unknown keys of a kind are refused.
"""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.rope import MAX_ANGLE, ROPE_KINDS
from penstock.model.spec import RopeSpec

DEFAULT_THETA: Final = 10000.0
_SYNONYMS: Final = {"su": "longrope"}  # as Phi-3 first named it
_MAX_THETA: Final = 1e12
_MAX_FACTOR: Final = 1e6


def read_rope(config: ConfigReader, head_dim: int) -> RopeSpec:
    """The RopeSpec of all layers; rotates all of `head_dim`."""
    max_position = config.get("max_position_embeddings", int, most=MAX_ANGLE)
    theta = config.find("rope_theta", float, least=1.0001, most=_MAX_THETA)
    config.expect("partial_rotary_factor", 1, 1.0, why="this architecture rotates whole heads")
    original = config.find("original_max_position_embeddings", int, least=2, most=MAX_ANGLE)
    scaling, parameters = config.nested("rope_scaling"), config.nested("rope_parameters")
    if scaling is not None and parameters is not None:
        raise config.refuse("rope_scaling", "contradicts rope_parameters; one of the two must go")
    block = scaling or parameters
    if block is None:
        return RopeSpec(rotary_dim=head_dim, theta=theta or DEFAULT_THETA, max_position=max_position)

    kind = _kind(block)
    inner_theta = block.find("rope_theta", float, least=1.0001, most=_MAX_THETA)
    if theta is not None and inner_theta is not None and theta != inner_theta:
        raise block.refuse("rope_theta", f"is {inner_theta:g}, but rope_theta itself is {theta:g}")
    block.expect("partial_rotary_factor", 1, 1.0, why="this architecture rotates whole heads")
    base = RopeSpec(
        rotary_dim=head_dim,
        theta=inner_theta or theta or DEFAULT_THETA,
        max_position=max_position,
        kind=kind,
    )
    rope = _scaled(block, base, original)
    block.finish()
    return rope


def max_context(config: ConfigReader, rope: RopeSpec) -> int:
    """How far the positions reach: what the file states, and what a scaling stretches it to.

    `linear` is often stated after stretching, so only an explicit `max_sequence_length` goes further.
    """
    stated = config.find("max_sequence_length", int, most=MAX_ANGLE) or 0
    if rope.kind == "dynamic":
        return min(int(rope.max_position * rope.factor), MAX_ANGLE)
    if rope.kind == "yarn":
        return min(max(rope.max_position, int(rope.original_max_position * rope.factor)), MAX_ANGLE)
    return max(rope.max_position, stated) if rope.kind == "linear" else rope.max_position


def _kind(block: ConfigReader) -> str:
    new, old = block.find("rope_type", str), block.find("type", str)
    if new is not None and old is not None and new != old:
        raise block.refuse("type", f"is {old!r}, but rope_type is {new!r}; one of the two must go")
    kind = _SYNONYMS.get(new or old or "default", new or old or "default")
    if kind not in ROPE_KINDS:
        key = "rope_type" if new is not None else "type"
        raise block.refuse(key, f"is {kind!r}; supported are {', '.join(ROPE_KINDS)}")
    return kind


def _scaled(block: ConfigReader, base: RopeSpec, original: int | None) -> RopeSpec:
    """`base` with the fields that its kind reads. `original` is the length stated outside the block."""
    if base.kind == "default":
        block.ignore("original_max_position_embeddings", "factor", why="the default kind scales nothing")
        return base
    if base.kind in {"linear", "dynamic"}:
        if base.kind == "dynamic" and base.rotary_dim <= 2:
            raise block.refuse("type", "is dynamic, which needs heads wider than 2")
        block.ignore("original_max_position_embeddings", why=f"{base.kind} does not read it")
        return replace(base, factor=block.get("factor", float, most=_MAX_FACTOR))

    inner = block.find("original_max_position_embeddings", int, least=2, most=MAX_ANGLE)
    base = replace(base, original_max_position=original or inner or base.max_position)
    if base.kind == "llama3":
        low = block.get("low_freq_factor", float, least=1e-3, most=_MAX_FACTOR)
        high = block.get("high_freq_factor", float, least=1e-3, most=_MAX_FACTOR)
        if not low < high:
            raise block.refuse("high_freq_factor", f"is {high:g}; it must be above low_freq_factor, {low:g}")
        factor = block.get("factor", float, most=_MAX_FACTOR)
        return replace(base, factor=factor, low_freq_factor=low, high_freq_factor=high)

    ratio = max(base.max_position / base.original_max_position, 1.0)
    base = replace(
        base,
        factor=block.get("factor", float, ratio, most=_MAX_FACTOR),
        attention_factor=block.find("attention_factor", float, least=1e-3, most=1e3),
    )
    if base.kind == "longrope":
        num_pairs = base.rotary_dim // 2
        short, long = (block.numbers(f"{name}_factor", num_pairs) for name in ("short", "long"))
        return replace(base, short_factor=short, long_factor=long)
    beta_fast = block.get("beta_fast", float, 32.0, least=1e-3, most=_MAX_FACTOR)
    beta_slow = block.get("beta_slow", float, 1.0, least=1e-3, most=_MAX_FACTOR)
    if beta_fast < beta_slow:
        raise block.refuse("beta_fast", f"is {beta_fast:g}; it must not be below beta_slow, {beta_slow:g}")
    return replace(
        base,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        mscale=block.find("mscale", float, least=0, most=1e3),
        mscale_all_dim=block.find("mscale_all_dim", float, least=0, most=1e3),
        truncate=block.get("truncate", bool, True),
    )
