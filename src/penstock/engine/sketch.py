"""What a checkpoint would be as a program: names, formats and sizes, before any weight is packed.

Called by build.py and executors.py. A sketch is a program that nobody runs: the planner asks it what things
cost.
"""

from collections.abc import Mapping
from functools import cache

from penstock import env
from penstock.backends.cpu.probe import isas
from penstock.config import EngineConfig, Plan
from penstock.errors import ModelLoadError
from penstock.model.build import build
from penstock.model.family import FAMILIES
from penstock.model.gguf_names import gguf_names
from penstock.model.names import Names
from penstock.model.passes.fuse import fuse
from penstock.model.program import KVLayer, Program
from penstock.model.spec import ModelSpec
from penstock.planner.experts import ExpertFacts
from penstock.planner.plan import DTYPES, Facts
from penstock.weights.format import FORMATS
from penstock.weights.loader import Wanted, packed_bytes
from penstock.weights.reader import Checkpoint, CodedTensor


def names_of(spec: ModelSpec, checkpoint: Checkpoint) -> Names:
    """What this checkpoint calls its tensors."""
    if checkpoint.lineage:
        return gguf_names(checkpoint.lineage, checkpoint.tensors)
    return FAMILIES[spec.architecture].names


def program_of(
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


def own_formats_of(spec: ModelSpec, checkpoint: Checkpoint) -> dict[str, str]:
    """Of a checkpoint of integer codes: the format of every matrix, by canonical name; else empty."""
    if not any(isinstance(tensor, CodedTensor) for tensor in checkpoint.tensors.values()):
        return {}
    names = names_of(spec, checkpoint)
    found: dict[str, str] = {}
    for use in program_of(spec, "bfloat16", "bfloat16", "bfloat16", max_context=1).weights.values():
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


def wanted_of(program: Program, names: Names) -> list[Wanted]:
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
        for want in wanted_of(program, names_of(program.spec, checkpoint))
        if want.kind == "linear" and want.format != "float32"  # routers are that, whatever the file holds
        for tensor in map(checkpoint.tensors.get, want.sources)
        if tensor is not None and not isinstance(tensor, CodedTensor)
    }
    if not dtypes:
        return "bfloat16"
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def facts_of(spec: ModelSpec, checkpoint: Checkpoint, config: EngineConfig) -> Facts:
    own_formats, names = own_formats_of(spec, checkpoint), names_of(spec, checkpoint)

    @cache
    def sketch(weight_format: str, head_format: str, kv_dtype: str = "bfloat16") -> Program:
        return program_of(
            spec, weight_format, head_format, kv_dtype, max_context=1,
            activations="bfloat16", own_formats=own_formats,
        )  # fmt: skip

    def weight_bytes(weight_format: str, head_format: str) -> int:
        return sum(
            packed_bytes(w)
            for w in wanted_of(sketch(weight_format, head_format), names)
            if w.kind == "linear"
        )

    def expert_bytes(weight_format: str) -> list[int]:
        found: dict[str, int] = {}
        program = sketch(weight_format.partition("+")[0], "bfloat16")
        matrices = expert_matrices(program)
        for want in wanted_of(program, names):
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
    float_formats = tuple(sorted(set(layers) & set(DTYPES))) if code_formats else ()
    cannot_fetch = ""
    if not isas() or refusals or config.backend == "reference":
        cannot_fetch = "the reference backend holds all weights. Choose a smaller model, or free memory."
    elif not config.pack_cache:
        cannot_fetch = "nothing is kept on disk to read them from. Leave pack_cache on, or free memory."
    return Facts(
        dtype, native_isa, tuple(refusals), weight_bytes, layer_block_bytes, code_formats=code_formats,
        float_formats=float_formats,
        head_format=head, experts=ExpertFacts(expert_bytes, cannot_fetch),
    )  # fmt: skip


def expert_matrices(program: Program) -> set[str]:
    """Weights of all experts of a layer."""
    calls = [call for call in program.calls if call.op.name == "expert_mlp"]
    return {str(call.inputs[i]).removeprefix("weights.") for call in calls for i in (2, 4)}


def mapped_weights(program: Program, plan: Plan) -> set[str]:
    """Weights that stay on disk: experts, where not all of them fit."""
    counts = {call.attrs["num_experts"] for call in program.calls if call.op.name == "expert_mlp"}
    return expert_matrices(program) if counts and plan.resident_experts < max(counts) else set()
