"""Text -> rows of token ids: the exact input of every training step.

Called by train.py. A stage's stream of one epoch is a pure function of corpus, tokenizer, stage, seed
and epoch, so a run that was killed goes on with the rows it would have seen. Rows are cut from one
stream without padding; attention may look across a document's edge, which <|begin|> marks.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from tools.train import tokenizer as names
from tools.train.data import Document
from tools.train.examples import Gap, Turn, chat_turns, gaps
from tools.train.recipe import Stage

IGNORED = -100  # a target that is not learned


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that stay together, and for each whether it is learned."""

    tokens: list[int]
    learned: list[bool]


class Packer:
    """Rows of a stage, epoch after epoch, in an order fixed by the seed."""

    def __init__(
        self, tokenizer: Tokenizer, documents: Sequence[Document], stage: Stage, *, seed: int
    ) -> None:
        self._tokenizer, self._stage, self._seed = tokenizer, stage, seed
        self._documents = documents
        self._id = names.special_ids(tokenizer)
        self._plain = {document.path: self.plain(document.text) for document in documents}

    def plain(self, text: str) -> Piece:
        tokens = [self._id[names.BEGIN], *self._ids(text), self._id[names.END]]
        return Piece(tokens, [True] * len(tokens))

    def chat(self, turn: Turn) -> Piece:
        question = [self._id[names.BEGIN], self._id[names.USER], *self._ids(turn.question)]
        question += [self._id[names.TURN_END], self._id[names.ASSISTANT]]
        answer = [*self._ids(turn.answer.strip()), self._id[names.TURN_END]]
        return Piece(question + answer, [False] * len(question) + [True] * len(answer))

    def fim(self, gap: Gap) -> Piece:
        shown = [self._id[names.BEGIN], self._id[names.FIM_PREFIX], *self._ids(gap.prefix)]
        shown += [self._id[names.FIM_SUFFIX], *self._ids(gap.suffix), self._id[names.FIM_MIDDLE]]
        middle = [*self._ids(gap.middle), self._id[names.END]]
        return Piece(shown + middle, [False] * len(shown) + [True] * len(middle))

    def epoch_rows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Give the tokens and targets of one epoch, each int64 [rows, row_tokens], shuffled."""
        chance = random.Random(f"{self._seed} {self._stage.name} {epoch}")
        pieces = self._pieces(chance)
        chance.shuffle(pieces)
        tokens = np.array([token for piece in pieces for token in piece.tokens], dtype=np.int64)
        learned = np.array([flag for piece in pieces for flag in piece.learned], dtype=np.bool_)
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

    def _pieces(self, chance: random.Random) -> list[Piece]:
        code = [document for document in self._documents if document.kind == "code"]
        prose = [document for document in self._documents if document.kind == "prose"]
        pieces = [self._plain[document.path] for document in _sampled(code, self._stage.code, chance)]
        pieces += [self._plain[document.path] for document in _sampled(prose, self._stage.prose, chance)]
        pieces += [self.chat(turn) for turn in chat_turns(_sampled(code, self._stage.chat, chance), chance)]
        pieces += [self.fim(gap) for gap in gaps(_sampled(code, self._stage.fim, chance), chance)]
        return pieces

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _sampled(documents: list[Document], weight: float, chance: random.Random) -> list[Document]:
    """Give `weight` times the documents: whole copies, and a sample for the fraction."""
    whole = int(weight)
    return documents * whole + chance.sample(documents, round((weight - whole) * len(documents)))
