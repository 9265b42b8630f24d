"""How many experts of each layer stay in memory: all, or as many as fit; the rest are read when rows ask.

Called by planner.plan. Refuses what cannot run: a layer that finds no room for the experts of one row, or
no file to read the others from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from penstock.config import EngineConfig
from penstock.errors import ConfigError, OutOfMemoryError
from penstock.model.spec import ModelSpec, MoESpec

SHOWN_BYTES: Final = 10**7  # what is asked of a user is rounded up to what is shown
KV_SHARE: Final = 0.2  # of the memory without experts, where not all of them fit and nobody said otherwise


@dataclass(frozen=True, slots=True)
class ExpertFacts:
    """`layer_bytes`: (weight format) -> packed experts of each layer that has them."""

    layer_bytes: Callable[[str], list[int]]
    cannot_fetch: str  # why experts cannot be read as they are needed; empty: they can


NO_EXPERTS: Final = ExpertFacts(lambda _: [], "")


def plan_experts(
    config: EngineConfig,
    spec: ModelSpec,
    facts: ExpertFacts,
    *,
    weight_format: str,
    weight_bytes: int,
    available_bytes: int,
    reasons: dict[str, str],
) -> tuple[int, int]:
    """(experts of a layer that are resident, bytes of all weights in memory)."""
    layers = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, MoESpec)]
    if not layers:
        if config.expert_bytes != "auto":
            raise ConfigError("expert_bytes: this model has no experts; leave it out.")
        if weight_bytes > available_bytes:
            raise OutOfMemoryError(
                f"weights take {_gb(weight_bytes)} as {weight_format}; {_gb(available_bytes)} are free. "
                f"{_smaller(weight_format)}"
            )
        reasons["resident_experts"] = "the model has none"
        return 0, weight_bytes
    if config.expert_bytes != "auto" and config.expert_bytes <= 0:
        raise ConfigError(f"expert_bytes={config.expert_bytes}: must be positive.")
    count, top_k = max(m.num_experts for m in layers), max(m.top_k for m in layers)
    sizes = facts.layer_bytes(weight_format)
    whole, widest = sum(sizes), max(sizes)
    others = weight_bytes - whole
    room = available_bytes - others
    if config.expert_bytes == "auto":
        if weight_bytes <= available_bytes:
            reasons["resident_experts"] = "all fit"
            return count, weight_bytes
        kv = room * KV_SHARE if config.memory_bytes == "auto" else config.memory_bytes
        room = int(room - kv)
    elif config.expert_bytes >= whole and weight_bytes <= available_bytes:
        reasons["resident_experts"] = "all fit into the expert_bytes asked for"
        return count, weight_bytes
    else:
        room = min(room, config.expert_bytes)
    if facts.cannot_fetch:
        raise OutOfMemoryError(
            f"experts take {_gb(whole)} as {weight_format}, {_gb(max(0, room))} are there for them, and the "
            f"rest cannot be read as it is needed: {facts.cannot_fetch}"
        )
    # A layer under way may read all of its experts, whatever it keeps.
    resident = min(count, int(count * (room - widest) / whole))
    if resident < top_k:
        need = -(-(widest + -(-whole * top_k // count)) // SHOWN_BYTES) * SHOWN_BYTES
        raise OutOfMemoryError(
            f"experts take {_gb(whole)} as {weight_format}, and at least {_gb(need)} of memory: the {top_k} "
            f"of a row in each layer, and one layer whole; {_gb(max(0, room))} are there for them. "
            f"Free memory, raise expert_bytes, or ask for smaller --weights."
        )
    reasons["resident_experts"] = (
        f"{_gb(room)} for {_gb(whole)} of experts; the others are read from disk when rows ask for them"
    )
    return resident, others + whole * resident // count + widest


def _smaller(weight_format: str) -> str:
    if weight_format.startswith("int4"):
        return "Free memory or choose a smaller model."
    return f"Ask for --weights {'int4' if weight_format == 'int8' else 'int8 or int4'}, or free memory."


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
