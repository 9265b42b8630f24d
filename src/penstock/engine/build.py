"""Model folder + EngineConfig -> everything that serves: plan, program, weights, executor, tokenizer.

The only place that names the backends. Called by LLM, the CLI and the benchmarks; raises the typed errors of
whatever it reads and leaves nothing half loaded.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock import env
from penstock.backends.cpu.probe import dropped_isa, isas
from penstock.config import EngineConfig, Plan
from penstock.engine.locate import locate
from penstock.engine.prompts import load_template
from penstock.errors import ModelLoadError
from penstock.model.build import build
from penstock.model.config_reader import read_json
from penstock.model.family import FAMILIES, read_model
from penstock.model.generation import GenerationDefaults, read_generation
from penstock.model.gguf_names import gguf_names
from penstock.model.names import Names
from penstock.model.passes.fuse import fuse
from penstock.model.pooling import PoolingSpec, read_pooling
from penstock.model.program import KVLayer, Program
from penstock.model.spec import ModelSpec
from penstock.model.unfold import unfold
from penstock.planner.experts import ExpertFacts
from penstock.planner.machine import this_machine
from penstock.planner.plan import DTYPES, Facts, make_plan
from penstock.scheduler.policy import POLICIES
from penstock.scheduler.scheduler import MAX_SCORED_ROWS
from penstock.step import Executor
from penstock.text.chat_template import ChatTemplate
from penstock.text.tokenizer import Tokenizer
from penstock.weights.coding import CodedBlocks, CodedRows
from penstock.weights.format import FORMATS
from penstock.weights.loader import (
    CodePacker,
    LoadedWeights,
    Packer,
    Wanted,
    load,
    pack_with_numpy,
    packed_bytes,
)
from penstock.weights.reader import Checkpoint, CodedTensor, read_checkpoint
from penstock.weights.scheme import with_codes


@dataclass(frozen=True, slots=True)
class Loaded:
    """One model, ready to run steps. `notes`: lines that a person should read once, at start."""

    name: str
    folder: Path
    spec: ModelSpec
    plan: Plan
    program: Program
    executor: Executor
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    defaults: GenerationDefaults
    fingerprint: str
    notes: tuple[str, ...]
    pooling: PoolingSpec


def load_model(model: str, config: EngineConfig) -> Loaded:
    """Read, plan, pack and lower `model`. What is refused is refused before the weights are packed."""
    POLICIES[config.policy]  # an unknown name is refused before anything is read
    folder = locate(model, config.revision)
    spec = read_model(folder)
    pooling = read_pooling(folder, spec)
    if pooling.max_tokens is not None and not spec.has_head:
        spec = replace(spec, max_context=min(spec.max_context, pooling.max_tokens))
    tokenizer = Tokenizer.load(folder, spec.vocab_size)
    template, template_notes = load_template(folder, tokenizer)
    defaults = read_generation(folder)
    scheme_config = read_json(folder / "config.json").get("quantization_config")
    checkpoint = with_codes(read_checkpoint(folder), scheme_config)
    checkpoint = replace(checkpoint, tensors=unfold(checkpoint.tensors, _names(spec, checkpoint), spec))
    plan = make_plan(config, spec, _facts(spec, checkpoint, config), this_machine())
    program = _program(
        spec, plan.weight_format, plan.head_format, plan.kv_dtype, plan.max_context,
        activations=plan.activations, own_formats=_own_formats(spec, checkpoint),
    )  # fmt: skip
    executor, notes = _executor(program, plan, checkpoint, config)
    notes = (*template_notes, *notes)
    if spec.left_out:
        notes = (*notes, f"of this checkpoint is left out: {spec.left_out}.")
    if plan.weight_format == "float16":
        notes = (
            *notes,
            "fp16 weights run exactly, in fp32 arithmetic; --dtype bfloat16 is quicker and lossy.",
        )
    if plan.backend == "cpu" and (dropped := dropped_isa()):
        notes = (*notes, f"{dropped}; this processor's results are not trusted and the next best ISA runs.")
    if plan.backend == "reference":
        notes = (*notes, f"running on the reference backend: {plan.reasons['backend']}.")
    if broken := env.break_invariance():
        notes = (*notes, f"PENSTOCK_BREAK={broken}: answers depend on what else runs, on purpose.")
    return Loaded(
        name=model,
        folder=folder,
        spec=spec,
        plan=plan,
        program=program,
        executor=executor,
        tokenizer=tokenizer,
        chat_template=template,
        defaults=defaults,
        fingerprint=_fingerprint(checkpoint, program, plan, executor.describe()),
        notes=notes,
        pooling=pooling,
    )


def _names(spec: ModelSpec, checkpoint: Checkpoint) -> Names:
    """What this checkpoint calls its tensors."""
    if checkpoint.lineage:
        return gguf_names(checkpoint.lineage, checkpoint.tensors)
    return FAMILIES[spec.architecture].names


def _program(
    spec: ModelSpec,
    weight_format: str,
    head_format: str,
    kv_dtype: str,
    max_context: int,
    *,
    activations: str = "int8",
    own_formats: Mapping[str, str] | None = None,
) -> Program:
    return fuse(
        build(
            spec,
            weight_format=weight_format.partition("+")[0],  # of several, own_formats says which is where
            head_format=head_format,
            kv_dtype=kv_dtype,
            max_context=max_context,
            activations=activations,
            own_formats=own_formats,
        )
    )


def _own_formats(spec: ModelSpec, checkpoint: Checkpoint) -> dict[str, str]:
    """Of a checkpoint of integer codes: the format of every matrix, by canonical name; else empty."""
    if not any(isinstance(tensor, CodedTensor) for tensor in checkpoint.tensors.values()):
        return {}
    names = _names(spec, checkpoint)
    found: dict[str, str] = {}
    for use in _program(spec, "bfloat16", "bfloat16", "bfloat16", max_context=1).weights.values():
        for source in use.sources if use.kind == "linear" and use.format == "bfloat16" else ():
            tensor = checkpoint.tensors.get(names.checkpoint_name(source))
            if isinstance(tensor, CodedTensor):
                found[source] = tensor.format
            elif tensor is not None:
                found[source] = str(tensor.dtype)
                if found[source] != "bfloat16" and source not in ("embed", "lm_head"):
                    raise ModelLoadError(
                        "dtype_unsupported",
                        f"tensor {names.checkpoint_name(source)} is {tensor.dtype} among integer codes; only "
                        f"bfloat16 can be computed beside them. Quantize it too.",
                    )
    return found


def _wanted(program: Program, names: Names) -> list[Wanted]:
    """The program's weights by the names the checkpoint uses."""
    return [
        Wanted(use.name, tuple(map(names.checkpoint_name, use.sources)), use.shape, use.kind, use.format)
        for use in program.weights.values()
    ]


def _matrix_dtype(program: Program, checkpoint: Checkpoint) -> str:
    """The dtype of the checkpoint's matrices; float32, which holds all of them exactly, where they differ.

    `program` is a sketch in bfloat16.
    """
    dtypes = {
        str(tensor.dtype)
        for want in _wanted(program, _names(program.spec, checkpoint))
        if want.kind == "linear" and want.format != "float32"  # routers are that, whatever the file holds
        for tensor in map(checkpoint.tensors.get, want.sources)
        if tensor is not None and not isinstance(tensor, CodedTensor)
    }
    if not dtypes:
        return "bfloat16"
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _facts(spec: ModelSpec, checkpoint: Checkpoint, config: EngineConfig) -> Facts:
    own_formats, names = _own_formats(spec, checkpoint), _names(spec, checkpoint)

    @cache
    def sketch(weight_format: str, head_format: str, kv_dtype: str = "bfloat16") -> Program:
        return _program(
            spec, weight_format, head_format, kv_dtype, max_context=1,
            activations="bfloat16", own_formats=own_formats,
        )  # fmt: skip

    def weight_bytes(weight_format: str, head_format: str) -> int:
        return sum(
            packed_bytes(w) for w in _wanted(sketch(weight_format, head_format), names) if w.kind == "linear"
        )

    def expert_bytes(weight_format: str) -> list[int]:
        found: dict[str, int] = {}
        program = sketch(weight_format.partition("+")[0], "bfloat16")
        matrices = _expert_matrices(program)
        for want in _wanted(program, names):
            if want.name in matrices:
                layer = want.name.partition(".mlp.")[0]
                found[layer] = found.get(layer, 0) + packed_bytes(want)
        return list(found.values())

    def layer_block_bytes(backend: str, kv_dtype: str, block_size: int) -> list[int]:
        program = sketch("bfloat16", "bfloat16", kv_dtype)
        if backend == "cpu":
            from penstock.backends.cpu.lower import block_bytes

            return [block_bytes(layer) for layer in program.kept]
        return [  # numpy holds fp32
            4 * (k.values_per_token * block_size if isinstance(k, KVLayer) else k.values_per_block)
            for k in program.kept
        ]

    native_isa, refusals = None, []
    if isas():
        from penstock.backends.cpu.executor import choose_isa
        from penstock.backends.cpu.kernels import refusals as native_refusals

        native_isa = choose_isa(env.isa())
        refusals = native_refusals(sketch("bfloat16", "bfloat16"))
    dtype = _matrix_dtype(sketch("bfloat16", "bfloat16"), checkpoint)
    head = own_formats.get("embed" if spec.tie_embeddings else "lm_head", "")
    layers = [own for source, own in own_formats.items() if source.startswith("layers.")]
    code_formats = tuple(sorted(set(layers) & set(FORMATS) - set(DTYPES)))
    cannot_fetch = ""
    if not isas() or refusals or config.backend == "reference":
        cannot_fetch = "the reference backend holds all weights. Choose a smaller model, or free memory."
    elif not config.pack_cache:
        cannot_fetch = "nothing is kept on disk to read them from. Leave pack_cache on, or free memory."
    return Facts(
        dtype, native_isa, tuple(refusals), weight_bytes, layer_block_bytes, code_formats=code_formats,
        head_format=head, experts=ExpertFacts(expert_bytes, cannot_fetch),
    )  # fmt: skip


def _expert_matrices(program: Program) -> set[str]:
    """Weights of all experts of a layer."""
    calls = [call for call in program.calls if call.op.name == "expert_mlp"]
    return {str(call.inputs[i]).removeprefix("weights.") for call in calls for i in (2, 4)}


def _mapped(program: Program, plan: Plan) -> set[str]:
    """Weights that stay on disk: experts, where not all of them fit."""
    counts = {call.attrs["num_experts"] for call in program.calls if call.op.name == "expert_mlp"}
    return _expert_matrices(program) if counts and plan.resident_experts < max(counts) else set()


def _executor(
    program: Program, plan: Plan, checkpoint: Checkpoint, config: EngineConfig
) -> tuple[Executor, tuple[str, ...]]:
    names = _names(program.spec, checkpoint)

    def load_weights(pack: Packer, pack_codes: CodePacker | None = None) -> LoadedWeights:
        return load(
            checkpoint,
            _wanted(program, names),
            is_inert=lambda name: names.is_inert(name, program.spec),
            pack=pack,
            pack_codes=pack_codes,
            cache=env.cache_dir() if config.pack_cache else None,
            verify=config.verify_weights,
            mapped=_mapped(program, plan),
        )

    if plan.backend == "cpu":
        from penstock import _native
        from penstock.backends.cpu.executor import CpuExecutor, break_on_purpose
        from penstock.backends.cpu.lower import Limits

        break_on_purpose(env.break_invariance())
        pool = _native.Pool(plan.threads)

        def pack(rows: NDArray[np.generic], dtype: str, format: str, out: NDArray[np.uint8]) -> bool:
            finite: bool = pool.pack(rows.view(np.uint16) if rows.itemsize == 2 else rows, dtype, format, out)
            return finite

        def pack_codes(codes: CodedRows | CodedBlocks, format: str, out: NDArray[np.uint8]) -> bool:
            finite: bool
            if isinstance(codes, CodedBlocks):
                finite = pool.pack_blocks(codes.kind, np.ascontiguousarray(codes.rows), codes.k, format, out)
            else:
                parts = [part.view(np.uint8) for part in codes.stored_parts()]
                finite = pool.pack_codes(np.ascontiguousarray(codes.codes), parts, format, out)
            return finite

        weights = load_weights(pack, pack_codes)
        limits = Limits(
            plan.max_step_tokens,
            plan.max_requests + MAX_SCORED_ROWS,
            plan.num_kv_blocks,
            plan.resident_experts,
        )
        return CpuExecutor(program, weights, limits, isa=plan.isa, pool=pool), tuple(weights.notes)

    from penstock.backends.reference.executor import ReferenceExecutor

    weights = load_weights(pack_with_numpy)
    arrays = _unpacked(program, weights)
    executor = ReferenceExecutor(
        program, arrays, num_kv_blocks=plan.num_kv_blocks, block_size=plan.block_size
    )
    return executor, tuple(weights.notes)


def _unpacked(program: Program, weights: LoadedWeights) -> dict[str, NDArray[np.float32]]:
    """fp32 arrays of what the packed bytes stand for."""
    arrays: dict[str, NDArray[np.float32]] = dict(weights.vectors)
    for name, table in weights.embeddings.items():
        arrays[name] = table.astype(np.float32)
    for name, packed in weights.packed.items():
        use = program.weights[name]
        own = use.format or weights.coded_embeddings[name]
        arrays[name] = FORMATS[own].unpack(packed, *use.shape)
    return arrays


def _fingerprint(checkpoint: Checkpoint, program: Program, plan: Plan, executor: Mapping[str, str]) -> str:
    """Changes whenever the bits may: weights, build, kernel path, numeric configuration."""
    digest = hashlib.blake2b(digest_size=8)
    broken = env.break_invariance() or ""
    for part in (checkpoint.content_hash, program.fingerprint(), plan.backend, plan.isa, _version(), broken):
        digest.update(part.encode() + b"\0")
    if executor["backend"] == "cpu":
        from penstock import _native

        digest.update(hashlib.blake2b(Path(_native.__file__).read_bytes()).digest())
    return f"ps-{digest.hexdigest()}"


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "source"
