"""Rotary positions in config.json: both spellings in circulation -> RopeSpec.

The old one is `rope_theta` beside `rope_scaling: {type | rope_type, ...}`; the newer one, of transformers 5,
is `rope_parameters: {rope_type, rope_theta, ...}`. Unknown kinds and unknown keys of a kind are refused.
"""

from dataclasses import dataclass, replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.rope import MAX_ANGLE, ROPE_KINDS
from penstock.model.spec import RopeSpec

DEFAULT_THETA: Final = 10000.0
_SYNONYMS: Final = {"su": "longrope"}  # as Phi-3 first named it
_MAX_THETA: Final = 1e12
_MAX_FACTOR: Final = 1e6


@dataclass(frozen=True, slots=True)
class RopeKeys:
    """How an architecture spells its rotary positions, and what it means where it says nothing."""

    theta: str = "rope_theta"
    default_theta: float = DEFAULT_THETA
    share: str = "partial_rotary_factor"  # of a head that turns
    default_share: float = 1.0
    is_partial: bool = False  # False: only whole heads are known to turn
    scaling: str | None = "rope_scaling"  # None: that block is not of these layers
    interleaved: bool = False
    default_max_position: int | None = None
    layer_type: str | None = None  # rope_parameters holds a block for each kind of layer; this is the one


WHOLE_HEADS: Final = RopeKeys()


def read_rope(config: ConfigReader, head_dim: int, keys: RopeKeys = WHOLE_HEADS) -> RopeSpec:
    """The RopeSpec of all layers, or of all of one kind."""
    max_position = config.get("max_position_embeddings", int, keys.default_max_position, most=MAX_ANGLE)
    theta = config.find(keys.theta, float, least=1.0001, most=_MAX_THETA)
    share = _share(config, keys)
    original = config.find("original_max_position_embeddings", int, least=2, most=MAX_ANGLE)
    scaling = config.nested(keys.scaling) if keys.scaling else None
    parameters = config.nested("rope_parameters")
    if parameters is not None and keys.layer_type is not None:
        parameters = _block_of(parameters, keys.layer_type)
    if scaling is not None and parameters is not None:
        raise config.refuse("rope_scaling", "contradicts rope_parameters; one of the two must go")
    block = scaling or parameters

    def base(theta: float | None, share: float | None, kind: str = "default") -> RopeSpec:
        rotary_dim = int(head_dim * (share or keys.default_share))
        if rotary_dim < 2 or rotary_dim % 2:
            raise config.refuse(keys.share, f"turns {rotary_dim} of {head_dim} dims; they must be pairs")
        return RopeSpec(
            rotary_dim=rotary_dim,
            theta=theta or keys.default_theta,
            max_position=max_position,
            kind=kind,
            interleaved=keys.interleaved,
        )

    if block is None:
        return base(theta, share)
    kind = _kind(block)
    inner_theta = block.find("rope_theta", float, least=1.0001, most=_MAX_THETA)
    if theta is not None and inner_theta is not None and theta != inner_theta:
        raise block.refuse("rope_theta", f"is {inner_theta:g}, but {keys.theta} itself is {theta:g}")
    inner_share = _share(block, replace(keys, share="partial_rotary_factor"))
    if share is not None and inner_share is not None and share != inner_share:
        raise block.refuse("partial_rotary_factor", f"is {inner_share:g}, but {keys.share} is {share:g}")
    rope = _scaled(block, base(inner_theta or theta, inner_share or share, kind), original)
    block.finish()
    return rope


def _share(config: ConfigReader, keys: RopeKeys) -> float | None:
    if keys.is_partial:
        return config.find(keys.share, float, least=1e-3, most=1)
    config.expect(keys.share, 1, 1.0, why="this architecture rotates whole heads")
    return None


def _block_of(parameters: ConfigReader, layer_type: str) -> ConfigReader | None:
    """The block of one kind of layer; the others are read when their turn comes."""
    parameters.ignore("full_attention", "sliding_attention", why="each is read for its own layers")
    parameters.finish()
    return parameters.nested(layer_type)


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
