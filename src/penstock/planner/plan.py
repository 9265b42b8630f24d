"""EngineConfig -> Plan: every number decided, every choice with its reason.

Called once for each load, by engine.build. Knows the model as data and the machine as numbers; imports no
backend, touches no file.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from penstock.config import EngineConfig, Plan
from penstock.errors import ConfigError, ModelLoadError, OutOfMemoryError
from penstock.kv.codec import CODECS
from penstock.kv.groups import KVGroup, checkpoint_blocks, make_groups, split_blocks, total_bytes
from penstock.model.build import operand_of
from penstock.model.spec import LatentAttentionSpec, ModelSpec
from penstock.planner.caching import ASKED, plan_key_share, plan_prefix_cache
from penstock.planner.experts import NO_EXPERTS, ExpertFacts, plan_experts
from penstock.planner.machine import Machine

KV_SHARE = 0.7  # of the memory left after the weights
DEFAULT_REQUESTS = 64
DEFAULT_STEP_TOKENS = 512  # a step near one second for a 1B model on two cores; activations stay in cache
CPU_BLOCK_SIZE = 64
DEFAULT_INT4 = "int4_g64"  # 4.25 bits; g32 is half a bit more, g128 measurably worse on small models
DTYPES = ("float32", "float16", "bfloat16")  # of checkpoints; each has a weight format of its name
DEFAULT_HEAD = "int8"
LOSSY_FORMATS = ("int8", "int4_g32", "int4_g64", "int4_g128")
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What planning needs to know of the checkpoint and the build, as plain values."""

    checkpoint_dtype: str  # of the matrices that are no codes: float32 | float16 | bfloat16
    native_isa: str | None  # None: no native build
    native_refusals: tuple[str, ...]  # ops of the model without a native kernel
    weight_bytes: Callable[[str, str], int]  # (weight format, head format) -> packed bytes
    layer_block_bytes: Callable[[str, str, int], list[int]]  # (backend, kv dtype, block size) -> per layer
    experts: ExpertFacts = NO_EXPERTS
    code_formats: tuple[str, ...] = ()  # of matrices that are integer codes in the checkpoint
    float_formats: tuple[str, ...] = ()  # of the layers' matrices beside those
    head_format: str = ""  # of the head, where it is one of them


def make_plan(config: EngineConfig, spec: ModelSpec, facts: Facts, machine: Machine) -> Plan:
    """Raises ConfigError for contradictions, OutOfMemoryError with the numbers when it cannot fit.

    Every field of the plan has its reason.
    """
    if facts.checkpoint_dtype not in DTYPES:
        raise ModelLoadError(
            "dtype_unsupported",
            f"weights are {facts.checkpoint_dtype}; convert them to {', '.join(DTYPES)}.",
        )
    reasons: dict[str, str] = {}
    backend = _backend(config, facts, reasons)
    if config.head != "auto" and config.weights == "auto":
        raise ConfigError(
            f"head {config.head!r} without weights: an output head is quantized with the other matrices. "
            f"Ask for --weights int8 or int4 too, or leave it out."
        )
    formats = _own_codes if facts.code_formats else _formats
    weight_format, head_format, contract = formats(config, facts, reasons)
    activations = _activations(config, facts, weight_format, reasons)
    if contract == "int8":
        contract = activations
    dtype = "float32" if contract == "float32" else "bfloat16"
    reasons["dtype"] = f"follows the {contract} arithmetic"
    kv_dtype = _kv_dtype(config, spec, dtype, reasons)
    reasons["kv_dtype"] += _latents(spec)
    own = weight_format if facts.code_formats else facts.checkpoint_dtype
    has_own_weights = weight_format in (own, "float32") and contract != "int8"
    is_faithful = has_own_weights and CODECS[kv_dtype].exact
    reasons["is_faithful"] = (
        "int8 activations approximate"
        if facts.code_formats and not has_own_weights
        else f"{weight_format} holds {own} weights {'exactly' if has_own_weights else 'approximately'}"
    )
    if not CODECS[kv_dtype].exact:
        reasons["is_faithful"] += f", {kv_dtype} keys and values approximately"
    weight_bytes = facts.weight_bytes(weight_format, head_format)
    reasons["weight_bytes"] = "packed matrices; tables of embeddings stay in their file"
    resident_experts, weights_in_memory = plan_experts(
        config, spec, facts.experts, weight_format=weight_format, weight_bytes=weight_bytes,
        available_bytes=machine.available_bytes, reasons=reasons,
    )  # fmt: skip
    block_size = _block_size(config, backend, reasons)
    groups = make_groups(spec.kv_groups(), facts.layer_block_bytes(backend, kv_dtype, block_size))
    max_requests = _max_requests(config, reasons)
    max_step_tokens = _step_tokens(config, spec, max_requests, reasons)
    memory_bytes = _kv_memory(config, machine, weights_in_memory, reasons)
    max_context = _max_context(config, spec, groups, memory_bytes, max_step_tokens, block_size, reasons)
    num_blocks = split_blocks(
        groups, memory_bytes=memory_bytes, max_context=max_context, max_requests=max_requests,
        max_step_tokens=max_step_tokens, block_size=block_size,
    )  # fmt: skip
    reasons["num_kv_blocks"] = "so that all layers' blocks run out at the same number of requests"
    prefix_cache = plan_prefix_cache(config, spec, reasons)
    keeps_states = any(group.is_state for group in spec.kv_groups())
    reasons["checkpoint_blocks"] = (
        "so that states kept for others cost what keys and values would" if keeps_states else "has no states"
    )
    reasons["policy"] = ASKED if config.policy != "fcfs" else "whoever comes first"
    return Plan(
        backend=backend,
        isa=facts.native_isa or "" if backend == "cpu" else "",
        dtype=dtype,
        contract=contract,
        weight_format=weight_format,
        head_format=head_format,
        activations=activations,
        kv_dtype=kv_dtype,
        is_faithful=is_faithful,
        max_context=max_context,
        max_requests=max_requests,
        max_step_tokens=max_step_tokens,
        block_size=block_size,
        num_kv_blocks=num_blocks,
        prefix_cache=prefix_cache,
        key_share=plan_key_share(config, reasons),
        checkpoint_blocks=checkpoint_blocks(groups, block_size),
        policy=config.policy,
        threads=_threads(config, machine, reasons),
        seed=_seed(config, reasons),
        weight_bytes=weight_bytes,
        resident_experts=resident_experts,
        kv_bytes=total_bytes(groups, num_blocks),
        reasons=reasons,
    )


def _backend(config: EngineConfig, facts: Facts, reasons: dict[str, str]) -> str:
    if config.backend not in ("auto", "cpu", "reference"):
        raise ConfigError(f"backend {config.backend!r} is none of auto, cpu, reference.")
    reasons["isa"] = "the reference runs on numpy"
    if config.backend == "reference":
        reasons["backend"] = ASKED
        return "reference"
    if facts.native_isa is None:
        why = "this install has no native kernels (no C++ compiler was found when it was built)"
    elif facts.native_refusals:
        why = "; ".join(facts.native_refusals)
    else:
        reasons["backend"] = f"native kernels for {facts.native_isa}"
        reasons["isa"] = "the best that build and machine have, unless PENSTOCK_ISA is set"
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
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}.")
    if dtype == "float16" and own != "float16":
        raise ConfigError(
            f"dtype float16 would round {own} weights and can overflow; use auto, bfloat16 or float32."
        )
    if config.weights == "auto":
        contract = "bfloat16" if dtype == "bfloat16" else "float32"
        reasons["weight_format"] = (
            f"the checkpoint's own {own}" if dtype == own else f"--dtype {dtype} for a {own} checkpoint"
        )
        reasons["head_format"] = "that of the other layers"
        reasons["contract"] = f"what loses nothing of {dtype} weights"
        return dtype, dtype, contract
    weight_format = DEFAULT_INT4 if config.weights == "int4" else config.weights
    if weight_format not in LOSSY_FORMATS:
        raise ConfigError(f"weights {config.weights!r} is none of auto, int4, {', '.join(LOSSY_FORMATS)}.")
    if config.dtype not in ("auto", "bfloat16"):
        raise ConfigError(
            f"weights {config.weights} computes with int8 or bfloat16, dtype asks for {config.dtype}; "
            f"drop one of the two."
        )
    reasons["weight_format"] = f"--weights {config.weights}: lossy"
    head_format = DEFAULT_HEAD if config.head == "auto" else config.head
    if head_format not in LOSSY_FORMATS:
        raise ConfigError(f"head {config.head!r} is none of auto, {', '.join(LOSSY_FORMATS)}.")
    is_chosen = config.head == "auto"
    reasons["head_format"] = "4 bits cost a head more quality than they save time" if is_chosen else ASKED
    reasons["contract"] = "that of integer weights"
    return weight_format, head_format, "int8"


def _own_codes(config: EngineConfig, facts: Facts, reasons: dict[str, str]) -> tuple[str, str, str]:
    """The same of a checkpoint that is itself integer codes: each matrix as it is stored."""
    names = "+".join(facts.code_formats)
    if config.weights != "auto":
        raise ConfigError(
            f"weights {config.weights!r} would quantize a second time: the checkpoint holds {names}. "
            f"Leave it out."
        )
    if config.dtype not in ("auto", "bfloat16"):
        raise ConfigError(f"dtype {config.dtype!r}: integer codes are computed with bfloat16; leave it out.")
    reasons["weight_format"] = "the checkpoint's own codes"
    reasons["head_format"] = "the checkpoint's own"
    reasons["contract"] = "what multiplies integer codes"
    return names, facts.head_format or facts.checkpoint_dtype, "int8"


def _activations(config: EngineConfig, facts: Facts, weight_format: str, reasons: dict[str, str]) -> str:
    if weight_format in DTYPES:
        if config.activations != "auto":
            raise ConfigError(
                f"activations {config.activations!r} is for integer weights; these are {weight_format}. "
                f"Ask for --weights int8 or int4 too, or leave it out."
            )
        reasons["activations"] = "no weights are integers"
        return "bfloat16"
    if config.activations != "auto":
        held = facts.code_formats + facts.float_formats
        without = [name for name in held if operand_of(name, "int8") != "int8"]
        if config.activations == "int8" and without:
            raise ConfigError(
                f"activations int8: this checkpoint holds {', '.join(without)} in its layers, which is no "
                f"integer and multiplied with bfloat16 alone. Leave it out."
            )
        reasons["activations"] = ASKED
        return config.activations
    if facts.code_formats:
        reasons["activations"] = "bfloat16 loses nothing of the checkpoint's own codes"
        return "bfloat16"
    reasons["activations"] = "as quick as integers go; --activations bfloat16 loses less"
    return "int8"


def _kv_dtype(config: EngineConfig, spec: ModelSpec, dtype: str, reasons: dict[str, str]) -> str:
    if all(group.is_state for group in spec.kv_groups()):
        if config.kv_dtype != "auto":
            raise ConfigError(
                f"kv_dtype {config.kv_dtype!r}: this model keeps states, which are float32, and neither keys "
                f"nor values. Leave it out."
            )
        reasons["kv_dtype"] = "of no account: the model keeps states, which are float32"
        return dtype
    if config.kv_dtype == "auto":
        reasons["kv_dtype"] = "that of the attention: nothing is lost"
        return dtype
    if config.kv_dtype not in CODECS or CODECS[config.kv_dtype].exact:
        lossy = [name for name in CODECS if not CODECS[name].exact]
        raise ConfigError(f"kv_dtype {config.kv_dtype!r} is none of auto, {', '.join(lossy)}.")
    reasons["kv_dtype"] = f"--kv-dtype {config.kv_dtype}: lossy"
    return config.kv_dtype


def _latents(spec: ModelSpec) -> str:
    """What is kept of a token where it is no key and value of each head."""
    found = {layer.mixer for layer in spec.layers if isinstance(layer.mixer, LatentAttentionSpec)}
    kept = (f"{m.latent_dim} + {m.rope_dim} numbers for all {m.num_heads} heads (MLA)" for m in found)
    return "".join(f"; of each token {numbers}" for numbers in sorted(kept))


def _block_size(config: EngineConfig, backend: str, reasons: dict[str, str]) -> int:
    if backend == "cpu":
        if config.block_size not in ("auto", CPU_BLOCK_SIZE):
            raise ConfigError(
                f"block_size={config.block_size}: native kernels know {CPU_BLOCK_SIZE} alone; leave it out."
            )
        reasons["block_size"] = "what the native kernels are laid out for"
        return CPU_BLOCK_SIZE
    reasons["block_size"] = "as the native kernels" if config.block_size == "auto" else ASKED
    size = CPU_BLOCK_SIZE if config.block_size == "auto" else config.block_size
    if not 1 <= size <= 4096:
        raise ConfigError(f"block_size={size}: must be 1 to 4096 tokens.")
    return size


def _max_requests(config: EngineConfig, reasons: dict[str, str]) -> int:
    if config.max_requests == "auto":
        if config.max_step_tokens != "auto" and 1 <= config.max_step_tokens < DEFAULT_REQUESTS:
            reasons["max_requests"] = "each running request needs one of max_step_tokens"
            return config.max_step_tokens
        reasons["max_requests"] = "more rows gain little speed on a CPU"
        return DEFAULT_REQUESTS
    if not 1 <= config.max_requests <= 65536:
        raise ConfigError(f"max_requests={config.max_requests}: must be 1 to 65,536.")
    reasons["max_requests"] = ASKED
    return config.max_requests


def _step_tokens(config: EngineConfig, spec: ModelSpec, max_requests: int, reasons: dict[str, str]) -> int:
    if config.max_step_tokens == "auto" and not spec.is_causal:
        longest = spec.max_context if config.max_context == "auto" else config.max_context
        reasons["max_step_tokens"] = "the longest text, which is computed whole: its rows read all others"
        return max(DEFAULT_STEP_TOKENS, max_requests, longest)
    if config.max_step_tokens == "auto":
        reasons["max_step_tokens"] = (
            "keeps a step near a second, so that running answers go on during long prompts"
        )
        return max(DEFAULT_STEP_TOKENS, max_requests)
    if not 1 <= config.max_step_tokens <= 1 << 20:
        raise ConfigError(f"max_step_tokens={config.max_step_tokens}: must be 1 to 1,048,576.")
    if config.max_step_tokens < max_requests:
        raise ConfigError(
            f"max_step_tokens={config.max_step_tokens} is below max_requests={max_requests}: every running "
            f"request needs one token a step. Raise the first or lower the second."
        )
    reasons["max_step_tokens"] = ASKED
    return config.max_step_tokens


def _kv_memory(config: EngineConfig, machine: Machine, weight_bytes: int, reasons: dict[str, str]) -> int:
    free = max(0, machine.available_bytes - weight_bytes)
    if config.memory_bytes == "auto":
        reasons["kv_bytes"] = f"at most {KV_SHARE:.0%} of the {_gb(free)} left after the weights"
        return int(free * KV_SHARE)
    if config.memory_bytes <= 0:
        raise ConfigError(f"memory_bytes={config.memory_bytes}: must be positive.")
    if config.memory_bytes > free:
        raise OutOfMemoryError(
            f"memory_bytes asks for {_gb(config.memory_bytes)} of keys and values; {_gb(free)} are free "
            f"after the weights ({_gb(weight_bytes)}). Lower it."
        )
    reasons["kv_bytes"] = f"at most the memory_bytes {ASKED}"
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
    longest = spec.max_context if spec.is_causal else min(spec.max_context, max_step_tokens)
    if config.max_context != "auto":
        if not 1 <= config.max_context <= spec.max_context:
            raise ConfigError(
                f"max_context={config.max_context:,}: this model attends to 1 to {spec.max_context:,} "
                f"tokens; beyond that its positions were never trained."
            )
        if config.max_context > longest:
            raise ConfigError(
                f"max_context={config.max_context:,} is above max_step_tokens={max_step_tokens:,}, and this "
                "model reads a text in one step. Raise the second or lower the first."
            )
        reasons["max_context"] = ASKED
        return config.max_context

    def fits(tokens: int) -> bool:
        try:
            split_blocks(groups, memory_bytes=memory_bytes, max_context=tokens, max_requests=1,
                         max_step_tokens=max_step_tokens, block_size=block_size)  # fmt: skip
        except OutOfMemoryError:
            return False
        return True

    if fits(longest):
        is_all = longest == spec.max_context
        reasons["max_context"] = "all that the model was made for" if is_all else "what one step computes"
        return longest
    low, high = 0, longest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise OutOfMemoryError(
            f"{_gb(memory_bytes)} for keys and values hold no token; free memory or ask for smaller weights."
        )
    reasons["max_context"] = (
        f"what {_gb(memory_bytes)} of keys and values hold; the model could do {spec.max_context:,}"
    )
    return low


def _threads(config: EngineConfig, machine: Machine, reasons: dict[str, str]) -> int:
    if config.threads == "auto":
        reasons["threads"] = "physical cores this process may use"
        return machine.cores
    if not 1 <= config.threads <= 1024:
        raise ConfigError(
            f"threads={config.threads}: a pool has 1 to 1024 workers; leave it out to use {machine.cores}."
        )
    reasons["threads"] = ASKED
    return config.threads


def _seed(config: EngineConfig, reasons: dict[str, str]) -> int:
    if config.seed == "auto":
        reasons["seed"] = "drawn at start; each answer tells the seed it used"
        return secrets.randbits(63)
    if not -MAX_SEED - 1 <= config.seed <= MAX_SEED:
        raise ConfigError(f"seed={config.seed}: must be a signed 64-bit number.")
    reasons["seed"] = ASKED
    return config.seed


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
