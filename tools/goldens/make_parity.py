"""Write tests/goldens/parity: tiny random models of every family, and what transformers says of them.

Needs the `oracle` extra (torch, transformers):

    python -m tools.goldens.make_parity [NAME ...]

Each folder holds config.json, model.safetensors (float32 values that are all bfloat16 values, so that one
file serves both dtypes) and logits.npz:

    prompt, greedy   int32: the prompt's ids, and 64 greedy ids of the float32 model after it
    rows             int32: positions in prompt + greedy whose logits are stored
    float32          [rows, V] float32: logits of the float32 model, whole sequence at once
    bfloat16         [rows, V] uint16: bits of the logits of the same model in bfloat16
    max_context      the length that dynamic and longrope frequencies are fixed at, here as in penstock

A seed is accepted only if the greedy path has no near tie, so that the tokens are a fact about the model
and not about one machine's rounding.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tools.goldens.parity_models import MODELS
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

OUT = Path(__file__).parents[2] / "tests" / "goldens" / "parity"
NUM_GREEDY = 64
NUM_PROMPT_ROWS = 16
MIN_MARGIN = 4e-3  # between the best two logits, relative to the largest: 40 times the bar on errors


def attention_of(model_type: str) -> str:
    """transformers' plainest attention that is right: its eager Falcon adds ALiBi twice (5.23)."""
    return "sdpa" if model_type == "falcon" else "eager"


def random_model(config: Any, seed: int) -> Any:
    """The architecture, with weights that make every part matter: norms off 1, biases, large logits."""
    attention = attention_of(config.model_type)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    fill(model, config, seed)
    return model


def fill(model: Any, config: Any, seed: int) -> None:
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    stores_offset = "Gemma" in type(model).__name__  # its norms hold weight - 1
    is_turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.5 * noise
        elif "norm" in name.lower() or "ln_" in name:
            value = (0 if stores_offset else 1) + 0.2 * noise
        elif name in is_turned:
            value = noise * weight.shape[0] ** -0.5 * 1.5
        elif any(word in name for word in ("embed", "wte", "wpe")):
            value = noise * (0.3 if config.tie_word_embeddings else 1.0)
        else:  # [N,K], or [E,N,K] of experts
            value = noise * weight.shape[-1] ** -0.5 * 1.5
        weight.data.copy_(value.bfloat16().float())
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_((0.1 * torch.randn(buffer.shape, generator=generator)).bfloat16().float())
    model.tie_weights()


def fix_frequencies(model: Any, max_context: int) -> None:
    """dynamic and longrope choose by the length of each call; make them as penstock does, once."""
    rope = getattr(model.base_model, "rotary_emb", None)
    if getattr(rope, "rope_type", None) in ("dynamic", "longrope"):
        frequencies, rope.attention_scaling = ROPE_INIT_FUNCTIONS[rope.rope_type](
            model.config, device="cpu", seq_len=max_context
        )
        rope.inv_freq.copy_(frequencies)
        rope.rope_type = "default"


@torch.no_grad()
def logits_of(model: Any, tokens: list[int]) -> np.ndarray:
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


def greedy_path(model: Any, prompt: list[int]) -> tuple[list[int], float]:
    """64 greedy tokens, each from a whole pass, and the smallest relative margin on the way."""
    tokens, margin = list(prompt), np.inf
    for _ in range(NUM_GREEDY):
        row = logits_of(model, tokens)[-1]
        second, best = np.sort(row)[-2:]
        margin = min(margin, float(best - second) / float(np.abs(row).max()))
        if margin < MIN_MARGIN:
            return [], margin
        tokens.append(int(row.argmax()))
    return tokens[len(prompt) :], margin


def make(name: str) -> None:
    config_class, arguments, prompt_length, max_context = MODELS[name]
    config = config_class(**arguments, dtype="float32")
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    for seed in range(1000):
        model = random_model(config, seed)
        fix_frequencies(model, max_context)
        prompt = np.random.default_rng(seed).integers(3, config.vocab_size, prompt_length).tolist()
        greedy, margin = greedy_path(model, prompt)
        if greedy:
            break
    else:
        raise SystemExit(f"{name}: no seed without a near tie")

    num_prompt_rows = NUM_PROMPT_ROWS if config.vocab_size > 200 else NUM_PROMPT_ROWS // 2
    rows = np.arange(prompt_length - num_prompt_rows, prompt_length + NUM_GREEDY)
    exact = logits_of(model, prompt + greedy)[rows]
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        k: v for k, v in model.state_dict().items() if not (config.tie_word_embeddings and "lm_head" in k)
    }
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / "model.safetensors")
    values = {k: v for k, v in sorted(config.to_diff_dict().items()) if k not in {"is_llama_config"}}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")

    frequencies = {k: v.clone() for k, v in model.named_buffers() if k.endswith("inv_freq")}
    half = model.bfloat16()
    for key, value in frequencies.items():  # from_pretrained keeps them in float32, too
        half.get_buffer(key).data = value
    rounded = logits_of(half, prompt + greedy)[rows]
    np.savez_compressed(
        folder / "logits.npz",
        prompt=np.array(prompt, np.int32),
        greedy=np.array(greedy, np.int32),
        rows=rows.astype(np.int32),
        float32=exact,
        bfloat16=(rounded.view(np.uint32) >> 16).astype(np.uint16),
        max_context=np.int32(max_context),
    )
    size = sum(f.stat().st_size for f in folder.iterdir())
    error = np.sqrt(np.square(rounded - exact).mean()) / np.abs(exact).max()
    print(f"{name}: seed {seed}, margin {margin:.4f}, bf16 RMS error {error:.5f}, {size / 1000:.0f} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or MODELS:
        make(wanted)
