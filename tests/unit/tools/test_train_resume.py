"""A killed training run goes on bit for bit. Needs torch; a network of a few thousand weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tools.train.recipe import DRAFT, TINY, ModelShape, Recipe, Stage
from tools.train.sources import Document
from tools.train.tokenizer import train_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.oracle]
pytest.importorskip("torch")

SHAPE = ModelShape(
    vocab_size=420, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1
)
RECIPE = replace(
    TINY,
    shape=replace(SHAPE, head_dim=16),
    warmup_steps=2,
    stages=(
        Stage("stable", 5, 2, 32, code=1.0, prose=1.0, chat=0.0, fim=0.0, last_rate=1.0),
        Stage("anneal", 4, 2, 32, code=1.0, prose=0.0, chat=1.0, fim=1.0, num_layers=5),
    ),
)
FUNCTION = 'def area_{number}(width, height):\n    """Return the area."""\n    return width * height\n'
DOCUMENTS = [Document(f"stdlib/m{n}.py", "code", FUNCTION.format(number=n) * 9) for n in range(8)]


def _export(folder: Path, recipe: Recipe) -> bytes:
    """Train, going on from the state in `folder` if there is one; give the exported weights."""
    from tools.train.train import Places, Run

    tokenizer = train_tokenizer(DOCUMENTS, recipe.shape.vocab_size)
    Run(recipe, tokenizer, DOCUMENTS, Places(folder / "work", folder / "model"), is_compiled=False).train()
    return (folder / "model" / "model.safetensors").read_bytes()


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    assert _export(tmp_path / "first", RECIPE) == _export(tmp_path / "second", RECIPE)


def test_another_seed_gives_other_bytes(tmp_path: Path) -> None:
    assert _export(tmp_path / "first", RECIPE) != _export(
        tmp_path / "second", replace(RECIPE, seed=RECIPE.seed + 1)
    )


@pytest.mark.parametrize("killed_after_steps", [2, 5, 7])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after_steps: int
) -> None:
    from tools.train.train import Places, Run

    class KilledError(Exception):
        pass

    keep = Run._keep

    def keep_then_die(run: Run) -> None:
        keep(run)
        done = sum(run._progress.done.values())
        if done == killed_after_steps:
            run._save()
        if done == killed_after_steps + 1:
            raise KilledError

    whole = _export(tmp_path / "whole", RECIPE)
    tokenizer = train_tokenizer(DOCUMENTS, RECIPE.shape.vocab_size)
    places = Places(tmp_path / "killed" / "work", tmp_path / "killed" / "model")
    with monkeypatch.context() as patched:
        patched.setattr(Run, "_keep", keep_then_die)
        with pytest.raises(KilledError):
            Run(RECIPE, tokenizer, DOCUMENTS, places, is_compiled=False).train()
    resumed = _export(tmp_path / "killed", RECIPE)

    assert resumed == whole
    assert len(places.log.read_text().splitlines()) == 9


def test_a_network_that_grows_says_so_in_its_configuration(tmp_path: Path) -> None:
    _export(tmp_path, RECIPE)

    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 5
    assert {file.stem for file in (tmp_path / "work").glob("*.safetensors")} == {"stable", "anneal"}


@pytest.mark.filterwarnings("ignore")  # warnings of torch itself while it compiles
def test_two_hundred_steps_of_the_draft_and_a_kill_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shape that ships, compiled, as the command runs it."""
    from tools.train.train import Places, Run

    recipe = replace(
        DRAFT,
        teacher="",
        shape=replace(DRAFT.shape, vocab_size=420),
        stages=(Stage("corpus", 200, 2, 64, code=1.0, prose=0.0, chat=0.0, fim=0.0),),
    )
    tokenizer = train_tokenizer(DOCUMENTS, recipe.shape.vocab_size)

    def made(folder: Path) -> bytes:
        Run(recipe, tokenizer, DOCUMENTS, Places(folder, folder / "model")).train()
        return (folder / "model" / "model.safetensors").read_bytes()

    class KilledError(Exception):
        pass

    keep = Run._keep

    def keep_then_die(run: Run) -> None:
        keep(run)
        if run._progress.done["corpus"] == 120:
            run._save()
            raise KilledError

    first, second = made(tmp_path / "first"), made(tmp_path / "second")
    with monkeypatch.context() as patched:
        patched.setattr(Run, "_keep", keep_then_die)
        with pytest.raises(KilledError):
            made(tmp_path / "killed")

    assert first == second == made(tmp_path / "killed")
