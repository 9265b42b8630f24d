"""`python -m tools.train make | evaluate [WHAT]`: retrain our models from nothing; measure them.

Run from the repository's root, in an environment with the extra `train`. `make` goes on where it was killed;
`--fresh` starts over. WHAT is a model, `heads` (those of penstock-tiny) or, by default, all that ships. What
a model is grown from or taught by is made first. `evaluate` also rewrites the card.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tools.train import data
from tools.train.places import Folders
from tools.train.recipe import DRAFT, RECIPES, TINY, Recipe
from tools.train.sources import DEFAULT_DOCS, Document
from tools.train.tokenizer import train_tokenizer, write_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__)
    parser.add_argument("verb", choices=("make", "evaluate"))
    parser.add_argument("what", nargs="?", default="all", choices=("all", "heads", *RECIPES))
    parser.add_argument("--docs", type=Path, default=DEFAULT_DOCS, help="folder of *.rst.txt sources")
    parser.add_argument(
        "--site", type=Path, action="append", help="site-packages to learn from (default: this environment's)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the corpus and every trained state")
    parser.add_argument("--max-minutes", type=float, help="end the stages of each model early after this")
    arguments = parser.parse_args()
    folders = Folders()
    if arguments.fresh:
        shutil.rmtree(folders.work, ignore_errors=True)
        folders.work.mkdir(parents=True)
        folders.from_nothing.touch()
    corpus = data.load(arguments.docs, arguments.site or data.default_sites(), folders.corpus)
    workshop = Workshop(corpus, folders, max_minutes=arguments.max_minutes)
    if arguments.verb == "evaluate":
        workshop.evaluate(RECIPES.get(arguments.what, TINY))
        return
    for name in {"all": (TINY.name, DRAFT.name), "heads": ()}.get(arguments.what, (arguments.what,)):
        workshop.make(RECIPES[name])
    if arguments.what in ("all", "heads"):
        workshop.make_heads()


@dataclass
class Workshop:
    """The corpus, the folders and how long to train; each method does one of the commands."""

    corpus: data.Corpus
    folders: Folders
    max_minutes: float | None

    def make(self, recipe: Recipe) -> None:
        """Train one model, and before it what it needs; export it."""
        from tools.train.evaluate import load_model
        from tools.train.train import Places, Run

        for needed in (recipe.grown_from, recipe.teacher):
            if needed and not self._is_made(needed):
                self.make(RECIPES[needed])
        work, record = self.folders.state(recipe.name), self.folders.record(recipe.name)
        for folder in (work, record):
            folder.mkdir(parents=True, exist_ok=True)
        tokenizer = self._tokenizer(recipe)
        write_tokenizer(self.folders.model(recipe.name), tokenizer, recipe.shape.max_context_tokens)
        data.write_data_list(record / "data.json", self.corpus)
        teacher = load_model(self.folders.model(recipe.teacher)).bfloat16() if recipe.teacher else None
        progress = Run(
            recipe,
            tokenizer,
            self._documents(recipe.teacher if any(stage.own for stage in recipe.stages) else ""),
            Places(work, self.folders.model(recipe.name)),
            start=lambda: self._beginning(recipe, tokenizer),
            teacher=teacher,
            time_limit_s=self.max_minutes * 60 if self.max_minutes else None,
        ).train()
        shutil.copy(work / "log.jsonl", record / "log.jsonl")
        self.folders.finished(recipe.name).touch()
        print(f"{recipe.name}: steps {progress.done}, {progress.elapsed_s / 60:.1f} minutes")

    def make_heads(self) -> None:
        """Train the heads that guess for penstock-tiny."""
        from tools.train.evaluate import load_model
        from tools.train.train_heads import train_heads

        folder = self.folders.model(TINY.name)
        log = self.folders.record(TINY.name) / "heads.jsonl"
        documents = self._documents(TINY.name)
        target, tokenizer = load_model(folder).bfloat16(), self._tokenizer(TINY)
        train_heads(
            target,
            tokenizer,
            documents,
            folder / "heads",
            log,
            max_minutes=self.max_minutes,
            from_nothing=self.folders.from_nothing.is_file(),
        )

    def evaluate(self, recipe: Recipe) -> None:
        """Measure a checkpoint on the held-out test split; write the numbers and the card."""
        from tools.train.card import write_card
        from tools.train.evaluate import Paths, measure

        model = self.folders.model(recipe.name)
        draft = self.folders.model(DRAFT.name if recipe is TINY else "none")
        baselines = self.folders.record("baselines") / f"{recipe.shape.vocab_size}.json"
        record = self.folders.record(recipe.name)
        measured = measure(Paths(model, draft, baselines), self.corpus, record / "evaluation.json")
        write_card(recipe, model, record, measured)

    def _is_made(self, name: str) -> bool:
        """Say whether there are weights to begin with: of a run that ended, or committed ones."""
        if self.folders.finished(name).is_file():
            return True
        is_begun = (self.folders.state(name) / "state.pt").is_file()
        is_committed = (self.folders.model(name) / "model.safetensors").is_file()
        return is_committed and not is_begun and not self.folders.from_nothing.is_file()

    def _documents(self, teacher_name: str) -> list[Document]:
        from tools.train.own_text import own_documents

        documents = self.corpus.of("train")
        if not teacher_name:
            return documents
        stored = self.folders.state(teacher_name) / "own_text.json"
        return documents + own_documents(self.folders.model(teacher_name), documents, stored)

    def _beginning(self, recipe: Recipe, tokenizer: Tokenizer) -> "dict[str, Tensor]":
        """Give what a model begins with, as far as its recipe names where that comes from."""
        from tools.train.evaluate import load_model
        from tools.train.grow import draft_beginning, with_vocabulary

        if not (recipe.grown_from or recipe.teacher):
            return {}
        older = self.folders.model(recipe.grown_from or recipe.teacher)
        weights = dict(load_model(older).state_dict())
        rows = weights["embed_tokens.weight"]
        if not recipe.grown_from:
            return draft_beginning(rows, recipe.shape.hidden_size)
        old_tokenizer = Tokenizer.from_file(str(older / "tokenizer.json"))
        return {**weights, "embed_tokens.weight": with_vocabulary(rows, old_tokenizer, tokenizer)}

    def _tokenizer(self, recipe: Recipe) -> Tokenizer:
        """Give the tokenizer of this size, trained once; models of one size share it."""
        stored = self.folders.tokenizer(recipe.shape.vocab_size)
        if not stored.is_file():
            train_tokenizer(self.corpus.of("train"), recipe.shape.vocab_size).save(str(stored))
        tokenizer: Tokenizer = Tokenizer.from_file(str(stored))
        tokenizer.encode_special_tokens = True
        return tokenizer


if __name__ == "__main__":
    main()
