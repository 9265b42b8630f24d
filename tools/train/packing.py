"""Text -> rows of token ids: the exact input of every training step.

Called by train.py. A stage's stream of one epoch is a pure function of corpus, tokenizer, stage, seed
and epoch, so a run that was killed goes on with the rows it would have seen. Rows are cut from one
stream without padding; <|begin|> marks a document's edge, across which attention does not look (model.py).
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from tokenizers import Tokenizer
from tools.train import tokenizer as names
from tools.train.examples import Gap, Turn, chat_turns, functions, gaps
from tools.train.recipe import Stage
from tools.train.sources import Document

IGNORED = -100  # a target that is not learned


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that stay together, and for each whether it is learned."""

    tokens: np.ndarray  # int64
    learned: np.ndarray  # bool


class Packer:
    """Rows of a stage, epoch after epoch, in an order fixed by the seed."""

    def __init__(
        self, tokenizer: Tokenizer, documents: Sequence[Document], stage: Stage, *, seed: int
    ) -> None:
        self._tokenizer, self._stage, self._seed = tokenizer, stage, seed
        self._by_kind = {
            kind: in_order((one for one in documents if one.kind == kind), seed)
            for kind in ("code", "prose", "own")
        }
        self._id = names.special_ids(tokenizer)
        self._plain: dict[str, Piece] = {}  # made when first asked for: a stage may never see most of them

    def plain(self, text: str) -> Piece:
        return _piece([], [self._id[names.BEGIN], *self._ids(text), self._id[names.END]])

    def chat(self, turn: Turn) -> Piece:
        question = [self._id[names.BEGIN]]
        if turn.tools:
            question += [
                self._id[names.SYSTEM],
                *self._ids(f"Tools:\n{turn.tools}\n"),
                self._id[names.TURN_END],
            ]
        question += [self._id[names.USER], *self._ids(turn.question)]
        question += [self._id[names.TURN_END], self._id[names.ASSISTANT]]
        answer = self._ids(turn.answer.strip())
        if turn.is_call:
            answer = [self._id[names.TOOL_CALL], *answer, self._id[names.TOOL_CALL_END]]
        return _piece(question, [*answer, self._id[names.TURN_END]])

    def fim(self, gap: Gap) -> Piece:
        shown = [self._id[names.BEGIN], self._id[names.FIM_PREFIX], *self._ids(gap.prefix)]
        shown += [self._id[names.FIM_SUFFIX], *self._ids(gap.suffix), self._id[names.FIM_MIDDLE]]
        return _piece(shown, [*self._ids(gap.middle), self._id[names.END]])

    def epoch_rows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Give the tokens and targets of one epoch, each int64 [rows, row_tokens], shuffled."""
        chance = random.Random(f"{self._seed} {self._stage.name} {epoch}")
        pieces = self._pieces(chance, epoch)
        chance.shuffle(pieces)
        tokens = np.concatenate([piece.tokens for piece in pieces])
        learned = np.concatenate([piece.learned for piece in pieces])
        width = self._stage.row_tokens
        offset = chance.randrange(width)
        num_rows = (len(tokens) - 1 - offset) // width
        rows = slice(offset, offset + num_rows * width)
        shifted = slice(offset + 1, offset + 1 + num_rows * width)
        targets = np.where(learned[shifted], tokens[shifted], IGNORED)
        order = np.array(chance.sample(range(num_rows), num_rows))
        return tokens[rows].reshape(num_rows, width)[order], targets.reshape(num_rows, width)[order]

    def batches(self, first_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give what steps `first_step`, `first_step + 1`, ... learn from, without end."""
        size, step, epoch = self._stage.rows_per_step, 0, 0
        while True:
            tokens, targets = self.epoch_rows(epoch)
            for row in range(0, len(tokens) - size + 1, size):
                if step >= first_step:
                    yield tokens[row : row + size], targets[row : row + size]
                step += 1
            epoch += 1

    def _pieces(self, chance: random.Random, epoch: int) -> list[Piece]:
        stage = self._stage

        def shown(documents: Sequence[Document], share: float) -> list[Document]:
            return window(documents, share, stage.shown_from + epoch * share)

        pieces = [
            self._plain_of(document)
            for kind, share in (("code", stage.code), ("prose", stage.prose), ("own", stage.own))
            for document in shown(self._by_kind[kind], share)
        ]
        last_first = self._by_kind["code"][::-1]  # examples come from files that were not shown whole yet
        for document in shown(last_first, stage.functions):
            pieces += [self.plain(function.source) for function in functions(document)]
        pieces += [self.chat(turn) for turn in chat_turns(shown(last_first, stage.chat), chance)]
        pieces += [self.fim(gap) for gap in gaps(shown(last_first, stage.fim), chance)]
        return pieces

    def _plain_of(self, document: Document) -> Piece:
        piece = self._plain.get(document.path)
        if piece is None:
            piece = self._plain[document.path] = self.plain(document.text)
        return piece

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _piece(shown: list[int], learned: list[int]) -> Piece:
    flags = np.arange(len(shown) + len(learned)) >= len(shown)
    return Piece(np.array(shown + learned, dtype=np.int64), flags)


def in_order(documents: Iterable[Document], seed: int) -> list[Document]:
    """Shuffle by a hash of path and seed, which a change of other documents does not touch."""
    return sorted(documents, key=lambda one: sha256(f"{seed} {one.path}".encode()).digest())


def window(documents: Sequence[Document], share: float, first: float) -> list[Document]:
    """Give `share` times the documents, from `first` times on, going round and round."""
    count = len(documents)
    return [documents[place % count] for place in range(round(first * count), round((first + share) * count))]
