"""Two types, one direction: EngineConfig (asked, may say "auto") -> planner -> Plan (decided, never does).

A field is declared once: its flag, help text and vLLM spelling hang on it; `cli` and the documentation
are generated from them. Nobody edits either type after it is made.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

Auto = Literal["auto"]
Asked = TypeVar("Asked", bound=msgspec.Struct)
KINDS: dict[Any, str] = {  # Any: types and unions of them
    bool: "true or false",
    str: "a text",
    str | None: "a text",
    int: "a whole number",
    float: "a number",
    tuple[str, ...]: "a list of texts",
}


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line says about a field. `vllm` is an alias of the flag, not a second field."""

    help: str
    vllm: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def option(help: str, *, vllm: str = "", choices: tuple[str, ...] = ()) -> msgspec.Meta:
    return msgspec.Meta(extra={"option": Option(help, tuple(vllm.split()), choices)})


def limit(help: str, *, low: float, high: float) -> msgspec.Meta:
    """A bound of the server: a field of `engine.serving.Limits`, set in the TOML table of that name."""
    return msgspec.Meta(ge=low, le=high, extra={"option": Option(help)})


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
    head: Annotated[
        str,
        option(
            "Format of the output head with --weights int8 or int4. auto: what measured quality says.",
            choices=("auto", "int8", "int4_g32", "int4_g64", "int4_g128"),
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
    kv_dtype: Annotated[
        str,
        option(
            "How keys and values are kept. auto: in the compute dtype (faithful). int8: half of it, lossy.",
            vllm="--kv-cache-dtype",
            choices=("auto", "int8"),
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
    expert_bytes: Annotated[
        int | Auto,
        option(
            "Memory for the experts of a mixture, in bytes; the others are read from disk as rows ask for "
            "them. auto: all, or as many as fit."
        ),
    ] = "auto"
    block_size: Annotated[
        int | Auto, option("Tokens per KV block; 64 on the cpu backend.", vllm="--block-size")
    ] = "auto"
    prefix_cache: Annotated[
        bool, option("Reuse the keys and values of shared beginnings.", vllm="--enable-prefix-caching")
    ] = True
    key_share: Annotated[
        float,
        option(
            "Share of the KV blocks that one API key may hold before its own cached ones go first. 1: all."
        ),
    ] = 0.5
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


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user asks of the HTTP front. Sizes, counts and times are not here but in the limits table."""

    host: Annotated[
        str, option("Address to listen on. One that other machines can reach needs an API key.")
    ] = "127.0.0.1"
    port: Annotated[int, option("Port to listen on; 0 takes a free one and says which.")] = 8000
    model_name: Annotated[
        str | None,
        option("Name that clients ask for. Default: the model's own.", vllm="--served-model-name"),
    ] = None
    api_key_file: Annotated[
        str | None,
        option("File with API keys, one per line; PENSTOCK_API_KEY holds one more. Guards every route."),
    ] = None
    insecure_no_auth: Annotated[
        bool, option("Listen without a key on an address that other machines can reach.")
    ] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        option("Names, comma-separated, that may stand in Host where there is no key; addresses may always."),
    ] = ()
    allowed_origins: Annotated[
        tuple[str, ...], option("Origins, comma-separated, of other sites whose pages may send requests.")
    ] = ()
    strict: Annotated[
        bool, option("Refuse also those unknown parameters that could not change an answer.")
    ] = False
    template_kwargs: Annotated[
        tuple[str, ...],
        option("Names, comma-separated, that chat_template_kwargs may set, as enable_thinking."),
    ] = ()
    resume: Annotated[
        bool, option("Go on with open answers, token for token, when the engine had to be restarted.")
    ] = True
    log_requests: Annotated[
        bool, option("One JSON log line per request, without prompt or answer.", vllm="--enable-log-requests")
    ] = True


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What will happen; every number decided. Rooms are given the fields they need, never the Plan."""

    backend: str
    isa: str  # "" on the reference backend
    dtype: str  # compute dtype: float32 | bfloat16
    contract: str  # arithmetic of the linears: float32 | bfloat16 | int8
    weight_format: str  # of the linear layers: a name of FORMATS; several of a mixed checkpoint, joined by +
    activations: str  # operand of integer codes: int8 | bfloat16
    head_format: str  # format of lm_head
    kv_dtype: str  # a KV codec: float32 | bfloat16 | int8
    is_faithful: bool  # the checkpoint's own weights and dtype, nothing approximated, keys and values neither
    max_context: int
    max_requests: int
    max_step_tokens: int
    block_size: int
    num_kv_blocks: tuple[int, ...]  # per KV group
    prefix_cache: bool
    key_share: float  # of the blocks: what one API key may hold before its own cached ones go first
    checkpoint_blocks: int  # every how many blocks of a text a recurrent state is kept for others
    policy: str
    threads: int
    seed: int
    weight_bytes: int
    resident_experts: int  # of each layer that are kept in memory; 0: the model has none
    kv_bytes: int
    reasons: Mapping[str, str]  # field -> why: `penstock doctor MODEL` prints it


def option_of(field: str, kind: type[msgspec.Struct] = EngineConfig) -> Option:
    """What was declared of a field of EngineConfig or ServerConfig."""
    hint = get_type_hints(kind, include_extras=True)[field]
    meta = next(m for m in hint.__metadata__ if isinstance(m, msgspec.Meta))
    assert meta.extra is not None, f"{field} is declared without an option"
    found: Option = meta.extra["option"]
    return found


def from_mapping(values: Mapping[str, Any]) -> EngineConfig:  # Any: what users typed, checked here
    """EngineConfig from keyword arguments or TOML; an unknown or mistyped key is one clear line."""
    return read_fields(values, EngineConfig)


def read_fields(values: Mapping[str, Any], kind: type[Asked]) -> Asked:  # Any: what users typed, checked here
    """EngineConfig, ServerConfig or a table of limits from what a user wrote. ConfigError names the key."""
    import difflib

    from penstock.errors import ConfigError

    fields = msgspec.structs.fields(kind)
    known = [field.name for field in fields]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."
            raise ConfigError(f"unknown option {key!r}.{hint}")
    for field in fields:
        choices = _choices(field.name, kind)
        value = values.get(field.name, field.default)
        if choices and isinstance(value, str) and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{field.name} is {value!r:.60}; known are {', '.join(choices)}.{hint}")
    try:
        return msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        name = str(error).partition("$.")[2].rstrip("`").partition("[")[0]
        wanted = KINDS.get(get_type_hints(kind)[name], 'a whole number or "auto"')
        if bound := re.search("[<>]=? [0-9.]+", str(error)):
            wanted = f"{wanted} {bound.group()}"
        raise ConfigError(f"{name} is {values[name]!r:.60}; it must be {wanted}.") from None


def _choices(field: str, kind: type[msgspec.Struct]) -> tuple[str, ...]:
    hint = get_type_hints(kind, include_extras=True)[field]
    return option_of(field, kind).choices if hasattr(hint, "__metadata__") else ()
