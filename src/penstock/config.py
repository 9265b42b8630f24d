"""Two types, one direction: EngineConfig (asked, may say "auto") -> planner -> Plan (decided, never does).

A field is declared once: its flag, help text and vLLM spelling hang on it; `cli` and the documentation
are generated from them. Nobody edits either type after it is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line says about a field. `vllm` is an alias of the flag, not a second field."""

    help: str
    vllm: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def option(help: str, *, vllm: str = "", choices: tuple[str, ...] = ()) -> msgspec.Meta:
    return msgspec.Meta(extra={"option": Option(help, tuple(vllm.split()), choices)})


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user asks of an engine. "auto" means that the planner decides and gives its reason."""

    backend: Annotated[
        str, option("Which executor runs the model.", choices=("auto", "cpu", "reference"))
    ] = "auto"
    dtype: Annotated[
        str,
        option(
            "Compute dtype. auto: the checkpoint's own (faithful). bfloat16 for an fp16 checkpoint is lossy.",
            choices=("auto", "float32", "float16", "bfloat16"),
        ),
    ] = "auto"
    weights: Annotated[
        str,
        option(
            "Weight format. auto: as the checkpoint has them (faithful). int8 and int4 are lossy.",
            vllm="--quantization -q",
            choices=("auto", "int8", "int4", "int4_g32", "int4_g64", "int4_g128"),
        ),
    ] = "auto"
    activations: Annotated[
        str,
        option(
            "What integer weights are multiplied with. auto: bfloat16 for a checkpoint's own codes, int8 "
            "with --weights int8 or int4. int8 is quicker and lossy.",
            choices=("auto", "int8", "bfloat16"),
        ),
    ] = "auto"
    max_context: Annotated[
        int | Auto, option("Longest prompt plus output, in tokens.", vllm="--max-model-len")
    ] = "auto"
    max_requests: Annotated[int | Auto, option("Most requests in one step.", vllm="--max-num-seqs")] = "auto"
    max_step_tokens: Annotated[
        int | Auto,
        option(
            "Most tokens computed in one step; longer prompts go in chunks.", vllm="--max-num-batched-tokens"
        ),
    ] = "auto"
    memory_bytes: Annotated[int | Auto, option("Memory for keys and values, all layers, in bytes.")] = "auto"
    block_size: Annotated[
        int | Auto, option("Tokens per KV block; 64 on the cpu backend.", vllm="--block-size")
    ] = "auto"
    prefix_cache: Annotated[
        bool, option("Reuse the keys and values of shared beginnings.", vllm="--enable-prefix-caching")
    ] = True
    policy: Annotated[str, option("Scheduling policy: a name from POLICIES.", vllm="--scheduling-policy")] = (
        "fcfs"
    )
    threads: Annotated[
        int | Auto, option("Worker threads. auto: the physical cores this process may use.")
    ] = "auto"
    seed: Annotated[int | Auto, option("Seed of the requests that bring none. auto: drawn at start.")] = (
        "auto"
    )
    revision: Annotated[str | None, option("Branch, tag or commit of a Hugging Face repository.")] = None
    pack_cache: Annotated[
        bool, option("Keep packed weights on disk, so that the second start is instant.")
    ] = True
    verify_weights: Annotated[bool, option("Scan every weight for NaN and Inf at this load too.")] = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What will happen; every number decided. Rooms are given the fields they need, never the Plan."""

    backend: str
    isa: str  # "" on the reference backend
    dtype: str  # compute dtype: float32 | bfloat16
    contract: str  # arithmetic of the linears: float32 | bfloat16 | int8
    weight_format: str  # of the linear layers: a name of FORMATS; several of a mixed checkpoint, joined by +
    activations: str  # operand of integer codes: int8 | bfloat16
    head_format: str  # format of lm_head
    kv_dtype: str  # float32 | bfloat16
    is_faithful: bool  # the checkpoint's own weights and dtype, nothing approximated
    max_context: int
    max_requests: int
    max_step_tokens: int
    block_size: int
    num_kv_blocks: tuple[int, ...]  # per KV group
    prefix_cache: bool
    policy: str
    threads: int
    seed: int
    weight_bytes: int
    kv_bytes: int
    reasons: Mapping[str, str]  # field -> why: `penstock doctor MODEL` prints it


def option_of(field: str) -> Option:
    """What was declared of a field of EngineConfig."""
    hint = get_type_hints(EngineConfig, include_extras=True)[field]
    meta = next(m for m in hint.__metadata__ if isinstance(m, msgspec.Meta))
    assert meta.extra is not None, f"{field} is declared without an option"
    found: Option = meta.extra["option"]
    return found


def from_mapping(values: Mapping[str, Any]) -> EngineConfig:  # Any: what users typed, checked here
    """EngineConfig from keyword arguments or TOML; an unknown or mistyped key is one clear line."""
    import difflib

    from penstock.errors import ConfigError

    known = [f.name for f in msgspec.structs.fields(EngineConfig)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."
            raise ConfigError(f"unknown option {key!r}.{hint}")
    for field in msgspec.structs.fields(EngineConfig):
        choices = option_of(field.name).choices
        value = values.get(field.name, field.default)
        if choices and isinstance(value, str) and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{field.name} is {value!r:.60}; known are {', '.join(choices)}.{hint}")
    try:
        return msgspec.convert(dict(values), EngineConfig)
    except msgspec.ValidationError as error:
        name = str(error).partition("$.")[2].rstrip("`")
        kinds = {bool: "true or false", str: "a text", str | None: "a text"}
        kind = kinds.get(get_type_hints(EngineConfig)[name], 'a whole number or "auto"')
        raise ConfigError(f"{name} is {values[name]!r:.60}; it must be {kind}.") from None
