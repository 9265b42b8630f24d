"""The command's own path from nothing to every model that ships, shrunk to a few steps. Needs torch."""

from dataclasses import replace
from pathlib import Path

import pytest
from tools.train.data import Corpus
from tools.train.recipe import DRAFT, RECIPES, SAPLING, SPRIG, SPROUT, TINY, Recipe
from tools.train.sources import Document, Source

pytestmark = [pytest.mark.slow, pytest.mark.oracle]
pytest.importorskip("torch")

FUNCTION = (
    'def area_{number}(width, height):\n    """Return the area of both sides."""\n    return width * height\n'
)
SOURCES = [Source("stdlib", "sources", "1", "PSF-2.0")]


def _shrunk(recipe: Recipe) -> Recipe:
    """The recipe's stages in their order and kind, each of two small steps over the whole corpus."""
    stages = tuple(
        replace(
            stage,
            num_steps=2,
            rows_per_step=2,
            row_tokens=64,
            **{kind: 1.0 if getattr(stage, kind) else 0.0 for kind in ("code", "prose", "chat", "fim")},
            functions=1.0 if stage.functions else 0.0,
        )
        for stage in recipe.stages
    )
    shape = replace(
        DRAFT.shape, vocab_size=320 + recipe.shape.vocab_size // 1024, num_layers=recipe.shape.num_layers
    )
    return replace(recipe, shape=shape, stages=stages)


@pytest.fixture
def corpus() -> Corpus:
    code = [
        Document(f"stdlib/m{number}.py", "code", "\n\n".join(FUNCTION.format(number=n) for n in range(9)))
        for number in range(30)
    ]
    prose = [Document(f"stdlib/p{n}.rst.txt", "prose", f"Page {n} explains areas. " * 40) for n in range(9)]
    return Corpus(SOURCES, code + prose, {}, {})


def test_two_runs_of_the_whole_sequence_give_the_same_weights_one_of_them_killed_after_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Corpus
) -> None:
    import torch
    from tools.train import own_text
    from tools.train.__main__ import Workshop
    from tools.train.places import Folders
    from tools.train.train import Run

    class KilledError(Exception):
        pass

    def die(run: Run) -> None:
        run._save()
        run._export()  # as a run does from time to time: weights that are there, and are not the last
        raise KilledError

    for name, recipe in list(RECIPES.items()):
        monkeypatch.setitem(RECIPES, name, _shrunk(recipe))
    monkeypatch.setattr(own_text, "_NUM_TEXTS", 2)
    monkeypatch.setattr(own_text, "_TEXT_TOKENS", 8)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **_: None)  # half a minute a model
    names = (SPROUT.name, SAPLING.name, TINY.name, SPRIG.name, DRAFT.name)
    made, num_kills = [], 0
    for is_killed in (False, True):
        folders = Folders(tmp_path / str(is_killed))
        folders.work.mkdir(parents=True)
        folders.from_nothing.touch()
        workshop = Workshop(corpus, folders, max_minutes=None)
        while not all(folders.finished(name).is_file() for name in names):
            try:
                with monkeypatch.context() as patched:
                    if is_killed:
                        patched.setattr(Run, "_keep", die)
                    workshop.make(RECIPES[DRAFT.name])
            except KilledError:
                num_kills += 1
        made.append({name: (folders.model(name) / "model.safetensors").read_bytes() for name in names})

    assert made[0] == made[1]
    assert num_kills == 2 * sum(len(RECIPES[name].stages) for name in names)
    assert len(set(made[0].values())) == len(names)


def test_committed_weights_count_unless_everything_is_made_from_nothing(
    tmp_path: Path, corpus: Corpus
) -> None:
    from tools.train.__main__ import Workshop
    from tools.train.places import Folders

    folders = Folders(tmp_path)
    workshop = Workshop(corpus, folders, max_minutes=None)
    for folder in (folders.model(SAPLING.name), folders.state(SAPLING.name)):
        folder.mkdir(parents=True)
    assert not workshop._is_made(SAPLING.name)
    (folders.model(SAPLING.name) / "model.safetensors").touch()
    assert workshop._is_made(SAPLING.name)
    folders.from_nothing.touch()
    assert not workshop._is_made(SAPLING.name)
    folders.finished(SAPLING.name).touch()
    assert workshop._is_made(SAPLING.name)


def test_every_model_begins_with_weights_that_are_made_or_committed() -> None:
    from tools.train.places import Folders

    for recipe in RECIPES.values():
        for needed in (recipe.grown_from, recipe.teacher):
            assert not needed or (Folders().model(needed) / "model.safetensors").is_file()
