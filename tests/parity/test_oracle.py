"""Are the stored goldens what transformers says today? Compares logits and greedy tokens, model by model."""

import json

import numpy as np
import pytest
from tests.parity.test_parity import GOLDENS, MODELS

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("name", MODELS)
def test_transformers_still_says_what_is_stored(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tools.goldens.make_parity import attention_of, fix_frequencies, logits_of

    stored = np.load(GOLDENS / name / "logits.npz")
    model_type = json.loads((GOLDENS / name / "config.json").read_text())["model_type"]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        GOLDENS / name, dtype=torch.float32, attn_implementation=attention_of(model_type)
    ).eval()
    fix_frequencies(model, int(stored["max_context"]))
    tokens = [*stored["prompt"].tolist(), *stored["greedy"].tolist()]
    logits = logits_of(model, tokens)

    assert json.loads((GOLDENS / name / "config.json").read_text())["architectures"]
    assert np.abs(logits[stored["rows"]] - stored["float32"]).max() <= 1e-5 * np.abs(stored["float32"]).max()
    assert logits[len(stored["prompt"]) - 1 : -1].argmax(axis=1).tolist() == stored["greedy"].tolist()
