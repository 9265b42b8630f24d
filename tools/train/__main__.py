"""`python -m tools.train make | evaluate`: retrain a model from nothing; measure it and rewrite its card.

Run from the repository's root, in an environment with torch, tokenizers, safetensors and numpy. `make`
goes on where it was killed; `--fresh` starts over.
"""

import argparse
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from tools.train import data
from tools.train.recipe import TINY
from tools.train.tokenizer import train_tokenizer, write_tokenizer

_ROOT = Path(__file__).parents[2]
_MODEL = _ROOT / "src" / "penstock" / "models" / TINY.name
_RECORD = Path(__file__).parent / "record" / TINY.name
_WORK = _ROOT / "build" / "train" / TINY.name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__)
    parser.add_argument("verb", choices=("make", "evaluate"))
    parser.add_argument("--docs", type=Path, default=data.DEFAULT_DOCS, help="folder of *.rst.txt sources")
    parser.add_argument("--model", type=Path, default=_MODEL, help="folder of the checkpoint")
    parser.add_argument("--work", type=Path, default=_WORK, help="folder of the resumable state")
    parser.add_argument("--record", type=Path, default=_RECORD, help="folder of the curves and measurements")
    parser.add_argument("--fresh", action="store_true", help="forget an interrupted run")
    parser.add_argument("--max-minutes", type=float, help="end the stages early after this much training")
    arguments = parser.parse_args()
    documents = data.load(arguments.docs)
    if arguments.verb == "make":
        make(arguments, documents)
    else:
        evaluate(arguments, documents)


def make(arguments: argparse.Namespace, documents: list[data.Document]) -> None:
    """Train the tokenizer if there is none yet, then the model; export both."""
    from tools.train.train import Places, Run

    if arguments.fresh and arguments.work.exists():
        shutil.rmtree(arguments.work)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.record.mkdir(parents=True, exist_ok=True)
    train = [document for document in documents if document.split == "train"]
    stored = arguments.work / "tokenizer.json"
    if not stored.is_file():
        write_tokenizer(
            arguments.work, train_tokenizer(train, TINY.shape.vocab_size), TINY.shape.max_context_tokens
        )
    tokenizer = Tokenizer.from_file(str(stored))
    write_tokenizer(arguments.model, tokenizer, TINY.shape.max_context_tokens)
    data.write_data_list(arguments.record / "data.json", documents, arguments.docs)
    limit_s = arguments.max_minutes * 60 if arguments.max_minutes else None
    places = Places(arguments.work, arguments.model)
    progress = Run(TINY, tokenizer, train, places, time_limit_s=limit_s).train()
    shutil.copy(places.log, arguments.record / "log.jsonl")
    print(f"steps {progress.done}, {progress.elapsed_s / 60:.1f} minutes")


def evaluate(arguments: argparse.Namespace, documents: list[data.Document]) -> None:
    """Measure the checkpoint on the held-out test split; write the numbers and the card."""
    from tools.train.card import write_card
    from tools.train.evaluate import measure

    write_card(arguments.model, arguments.record, measure(arguments.model, documents))


if __name__ == "__main__":
    main()
