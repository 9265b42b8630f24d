"""Model folder + EngineConfig -> everything that serves: plan, program, weights, executor, tokenizer.

Called by LLM, the CLI and the benchmarks; raises the typed errors of whatever it reads and leaves nothing
half loaded. sketch.py says what a checkpoint would be as a program, executors.py makes the one that runs it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from penstock import env
from penstock.backends.cpu.probe import dropped_isa
from penstock.config import EngineConfig, Plan
from penstock.engine.executors import make_executor
from penstock.engine.locate import locate
from penstock.engine.prompts import load_template
from penstock.engine.sketch import facts_of, names_of, own_formats_of, program_of
from penstock.model.config_reader import read_json
from penstock.model.family import read_model
from penstock.model.generation import GenerationDefaults, read_generation
from penstock.model.pooling import PoolingSpec, read_pooling
from penstock.model.program import Program
from penstock.model.spec import ModelSpec
from penstock.model.unfold import unfold
from penstock.planner.machine import this_machine
from penstock.planner.plan import make_plan
from penstock.scheduler.policy import POLICIES
from penstock.step import Executor
from penstock.text.chat_template import ChatTemplate
from penstock.text.tokenizer import Tokenizer
from penstock.weights.reader import Checkpoint, read_checkpoint
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
    checkpoint = replace(checkpoint, tensors=unfold(checkpoint.tensors, names_of(spec, checkpoint), spec))
    plan = make_plan(config, spec, facts_of(spec, checkpoint, config), this_machine())
    program = program_of(
        spec, plan.weight_format, plan.head_format, plan.kv_dtype, plan.max_context,
        activations=plan.activations, own_formats=own_formats_of(spec, checkpoint),
    )  # fmt: skip
    executor, notes = make_executor(program, plan, checkpoint, config)
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
