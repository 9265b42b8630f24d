"""EngineConfig -> Plan: every number decided, every choice with its reason. Called once per load by engine.build.

Knows the model as data and the machine as numbers; imports no backend, touches no file.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from penstock.config import EngineConfig, Plan
from penstock.errors import ConfigError, OutOfMemoryError
from penstock.kv.groups import KVGroup, make_groups, split_blocks, total_bytes
from penstock.model.spec import ModelSpec
from penstock.planner.machine import Machine

KV_SHARE = 0.7  # of the memory left after the weights
DEFAULT_REQUESTS = 64
DEFAULT_STEP_TOKENS = 512  # a step near one second for a 1B model on two cores; activations stay in cache
CPU_BLOCK_SIZE = 64
DEFAULT_INT4 = "int4_g64"  # 4.25 bits; g32 is half a bit more, g128 measurably worse on small models
FORMAT_OF_DTYPE = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What planning needs to know of the checkpoint and the build, as plain values."""

    checkpoint_dtype: str  # of the matrices: float32 | float16 | bfloat16
    native_isa: str | None  # None: no native build
    native_refusals: tuple[str, ...]  # ops of the model without a native kernel
    weight_bytes: Callable[[str, str], int]  # (weight format, head format) -> packed bytes
    layer_token_bytes: Callable[[str, str], list[int]]  # (backend, kv dtype) -> per layer


def make_plan(config: EngineConfig, spec: ModelSpec, facts: Facts, machine: Machine) -> Plan:
    """Raises ConfigError for contradictions, OutOfMemoryError with the numbers when it cannot fit."""
    reasons: dict[str, str] = {}
    backend = _backend(config, facts, reasons)
    weight_format, head_format, contract = _formats(config, facts, reasons)
    kv_dtype = "float32" if contract == "float32" else "bfloat16"
    reasons["kv_dtype"] = f"follows the {contract} arithmetic"
    own_format = FORMAT_OF_DTYPE[facts.checkpoint_dtype]
    is_faithful = weight_format == own_format or (weight_format == "float32" and head_format == "float32")
    weight_bytes = facts.weight_bytes(weight_format, head_format)
    if weight_bytes > machine.available_bytes:
        raise OutOfMemoryError(
            f"weights take {_gb(weight_bytes)} as {weight_format}; {_gb(machine.available_bytes)} of memory are free. "
            f"Ask for --weights int8 or int4, or free memory."
        )
    block_size = _block_size(config, backend, reasons)
    groups = make_groups(spec.kv_groups(), facts.layer_token_bytes(backend, kv_dtype), block_size=block_size)
    max_requests = _max_requests(config, reasons)
    max_step_tokens = _step_tokens(config, max_requests, reasons)
    memory_bytes = _kv_memory(config, machine, weight_bytes, reasons)
    max_context = _max_context(config, spec, groups, memory_bytes, max_step_tokens, block_size, reasons)
    num_blocks = split_blocks(
        groups, memory_bytes=memory_bytes, max_context=max_context, max_requests=max_requests,
        max_step_tokens=max_step_tokens, block_size=block_size,
    )  # fmt: skip
    threads = machine.cores if config.threads == "auto" else config.threads
    if not 1 <= threads <= 1024:
        raise ConfigError(
            f"threads={threads}: a pool has 1 to 1024 workers; leave it out to use {machine.cores}."
        )
    reasons["threads"] = "physical cores this process may use" if config.threads == "auto" else "asked for"
    return Plan(
        backend=backend,
        isa=facts.native_isa or "" if backend == "cpu" else "",
        dtype="float32" if contract == "float32" else "bfloat16",
        contract=contract,
        weight_format=weight_format,
        head_format=head_format,
        kv_dtype=kv_dtype,
        is_faithful=is_faithful,
        max_context=max_context,
        max_requests=max_requests,
        max_step_tokens=max_step_tokens,
        block_size=block_size,
        num_kv_blocks=num_blocks,
        prefix_cache=config.prefix_cache,
        policy=config.policy,
        threads=threads,
        seed=secrets.randbits(63) if config.seed == "auto" else config.seed,
        weight_bytes=weight_bytes,
        kv_bytes=total_bytes(groups, num_blocks),
        reasons=reasons,
    )


def _backend(config: EngineConfig, facts: Facts, reasons: dict[str, str]) -> str:
    if config.backend == "reference":
        reasons["backend"] = "asked for"
        return "reference"
    if facts.native_isa is None:
        why = "this install has no native kernels (no C++ compiler was found when it was built)"
    elif facts.native_refusals:
        why = "; ".join(facts.native_refusals)
    else:
        reasons["backend"] = f"native kernels for {facts.native_isa}"
        return "cpu"
    if config.backend == "cpu":
        raise ConfigError(
            f"backend cpu cannot run this model: {why}. Leave --backend out to run on the reference."
        )
    reasons["backend"] = f"numpy reference, slow: {why}"
    return "reference"


def _formats(config: EngineConfig, facts: Facts, reasons: dict[str, str]) -> tuple[str, str, str]:
    """(weight format, head format, arithmetic contract)."""
    own = facts.checkpoint_dtype
    dtype = own if config.dtype == "auto" else config.dtype
    if dtype not in FORMAT_OF_DTYPE:
        raise ConfigError(f"dtype {dtype!r} is none of auto, {', '.join(FORMAT_OF_DTYPE)}.")
    if dtype == "float16" and own != "float16":
        raise ConfigError(
            f"dtype float16 would round {own} weights and can overflow; use auto (faithful), bfloat16 or float32."
        )
    if config.weights == "auto":
        contract = "bfloat16" if dtype == "bfloat16" else "float32"
        reasons["weight_format"] = (
            f"the checkpoint's own {own}" if dtype == own else f"--dtype {dtype} for a {own} checkpoint"
        )
        return FORMAT_OF_DTYPE[dtype], FORMAT_OF_DTYPE[dtype], contract
    weight_format = DEFAULT_INT4 if config.weights == "int4" else config.weights
    if weight_format not in ("int8", "int4_g32", "int4_g64", "int4_g128"):
        raise ConfigError(
            f"weights {config.weights!r} is none of auto, int8, int4, int4_g32, int4_g64, int4_g128."
        )
    reasons["weight_format"] = f"--weights {config.weights}: lossy, int8 activations"
    reasons["head_format"] = "logits of a 4-bit head cost more quality than its bytes are worth"
    return weight_format, "int8", "int8"


def _block_size(config: EngineConfig, backend: str, reasons: dict[str, str]) -> int:
    if backend == "cpu":
        if config.block_size not in ("auto", CPU_BLOCK_SIZE):
            raise ConfigError(
                f"block_size={config.block_size}: native kernels know {CPU_BLOCK_SIZE} alone; leave it out."
            )
        reasons["block_size"] = "what the native kernels are laid out for"
        return CPU_BLOCK_SIZE
    size = CPU_BLOCK_SIZE if config.block_size == "auto" else config.block_size
    if not 1 <= size <= 4096:
        raise ConfigError(f"block_size={size}: must be 1 to 4096 tokens.")
    return size


def _max_requests(config: EngineConfig, reasons: dict[str, str]) -> int:
    if config.max_requests == "auto":
        reasons["max_requests"] = "more rows gain little speed on a CPU"
        return DEFAULT_REQUESTS
    if not 1 <= config.max_requests <= 65536:
        raise ConfigError(f"max_requests={config.max_requests}: must be 1 to 65,536.")
    return config.max_requests


def _step_tokens(config: EngineConfig, max_requests: int, reasons: dict[str, str]) -> int:
    if config.max_step_tokens == "auto":
        reasons["max_step_tokens"] = (
            "keeps a step near a second, so that running answers go on during long prompts"
        )
        return max(DEFAULT_STEP_TOKENS, max_requests)
    if not max_requests <= config.max_step_tokens <= 1 << 20:
        raise ConfigError(
            f"max_step_tokens={config.max_step_tokens} is below max_requests={max_requests}: every running request needs "
            f"one token a step. Raise the first or lower the second."
        )
    return config.max_step_tokens


def _kv_memory(config: EngineConfig, machine: Machine, weight_bytes: int, reasons: dict[str, str]) -> int:
    free = max(0, machine.available_bytes - weight_bytes)
    if config.memory_bytes == "auto":
        reasons["memory_bytes"] = f"at most {KV_SHARE:.0%} of the {_gb(free)} left after the weights"
        return int(free * KV_SHARE)
    if config.memory_bytes <= 0:
        raise ConfigError(f"memory_bytes={config.memory_bytes}: must be positive.")
    if config.memory_bytes > free:
        raise OutOfMemoryError(
            f"memory_bytes asks for {_gb(config.memory_bytes)} of keys and values; {_gb(free)} are free after the "
            f"weights ({_gb(weight_bytes)}). Lower it or leave it out."
        )
    return config.memory_bytes


def _max_context(
    config: EngineConfig,
    spec: ModelSpec,
    groups: tuple[KVGroup, ...],
    memory_bytes: int,
    max_step_tokens: int,
    block_size: int,
    reasons: dict[str, str],
) -> int:
    if config.max_context != "auto":
        if not 1 <= config.max_context <= spec.max_context:
            raise ConfigError(
                f"max_context={config.max_context:,}: this model attends to 1 to {spec.max_context:,} tokens; "
                f"beyond that its positions were never trained."
            )
        reasons["max_context"] = "asked for"
        return config.max_context

    def fits(tokens: int) -> bool:
        try:
            split_blocks(groups, memory_bytes=memory_bytes, max_context=tokens, max_requests=1,
                         max_step_tokens=max_step_tokens, block_size=block_size)  # fmt: skip
        except OutOfMemoryError:
            return False
        return True

    if fits(spec.max_context):
        reasons["max_context"] = "all that the model was made for"
        return spec.max_context
    low, high = 0, spec.max_context
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise OutOfMemoryError(
            f"{_gb(memory_bytes)} for keys and values do not hold one token; free memory or ask for smaller weights."
        )
    reasons["max_context"] = (
        f"what {_gb(memory_bytes)} of keys and values hold; the model could do {spec.max_context:,}"
    )
    return low


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
