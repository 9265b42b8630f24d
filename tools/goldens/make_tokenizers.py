"""Writes tests/fixtures/tokenizers: small tokenizers of each kind that checkpoints ship, and their answers.

    python -m tools.goldens.make_tokenizers

Each folder gets `tokenizer.json`, `tokenizer_config.json` and `goldens.json` (ids and texts, computed by the
`tokenizers` library). The result is the same on every run: one thread, no randomness, scores by a formula.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# The library reads these when it is imported: one thread, so that nothing depends on scheduling.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tools.goldens.tokenizer_samples import LINES, SAMPLES

FOLDER = Path(__file__).parents[2] / "tests" / "fixtures" / "tokenizers"
GPT2_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PIECES = LLAMA3_PIECES.replace(r"\p{N}{1,3}", r"\p{N}")


class Fixture:
    """One folder to write: a tokenizer, and the tokenizer_config.json that goes with it."""

    def __init__(self, tokenizer: Tokenizer, tokens: Mapping[str, str | None], **settings: Any) -> None:
        self.tokenizer = tokenizer  # Any: settings are JSON, as published files have them
        self.config = {**tokens, **settings, "clean_up_tokenization_spaces": False}


def byte_level(pieces: str, special: Sequence[str], *, bos: bool, nfc: bool, merges: int) -> Tokenizer:
    """GPT-2, Llama 3, Qwen 2: bytes as letters, pieces by a regular expression, no unknown token."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=bos))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pieces), behavior="isolated", invert=False)
    bytes_as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_as_letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    add_tokens(tokenizer, special)
    trim = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = (
        processors.Sequence([trim, template(tokenizer, f"{special[0]} $A")]) if bos else trim
    )
    return tokenizer


def add_tokens(tokenizer: Tokenizer, special: Sequence[str], plain: Sequence[str] = ()) -> None:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])


def template(tokenizer: Tokenizer, single: str) -> processors.TemplateProcessing:
    """`single` is `<s> $A </s>` or the like; a pair repeats it, with type 1 for the second half."""
    pair = " ".join(part + ":1" for part in single.replace("$A", "$B").split())
    names = [part for part in single.split() if part != "$A"]
    return processors.TemplateProcessing(
        single=single, pair=f"{single} {pair}", special_tokens=[(n, tokenizer.token_to_id(n)) for n in names]
    )


def gpt2() -> Fixture:
    end = "<|endoftext|>"
    tokenizer = byte_level(GPT2_PIECES, [end], bos=False, nfc=False, merges=160)
    return Fixture(
        tokenizer, {"bos_token": end, "eos_token": end, "unk_token": end}, tokenizer_class="GPT2Tokenizer"
    )


def llama3() -> Fixture:
    begin, end, turn = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
    special = [begin, end, "<|start_header_id|>", "<|end_header_id|>", turn]
    tokenizer = byte_level(LLAMA3_PIECES, special, bos=True, nfc=False, merges=200)
    return Fixture(
        tokenizer, {"bos_token": begin, "eos_token": turn}, tokenizer_class="PreTrainedTokenizerFast"
    )


def qwen2() -> Fixture:
    end, start, turn = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
    tokenizer = byte_level(QWEN2_PIECES, [end, start, turn], bos=False, nfc=True, merges=200)
    add_tokens(tokenizer, [], plain=["<tool_call>", "</tool_call>", "<think>", "</think>"])
    tokens = {"bos_token": None, "eos_token": turn, "pad_token": end, "unk_token": None}
    return Fixture(tokenizer, tokens, tokenizer_class="Qwen2Tokenizer", add_bos_token=False)


def sentencepiece_bpe() -> models.BPE:
    """The vocabulary as SentencePiece orders it: control, 256 bytes, merged pieces, then single letters."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    learner.train_from_iterator(
        LINES[:14], trainers.BpeTrainer(vocab_size=300, min_frequency=2, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    letters = sorted((t for t in learned["vocab"] if len(t) == 1), key=lambda t: learned["vocab"][t])
    pieces = sorted((t for t in learned["vocab"] if len(t) > 1), key=lambda t: learned["vocab"][t])
    order = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    merges = [(left, right) for left, right in learned["merges"]]
    vocab = {token: number for number, token in enumerate(order)}
    return models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def sentencepiece(*, metaspace: bool) -> Tokenizer:
    """Llama 2 writes the spaces with normalizers and cuts no pieces; newer files use Metaspace, unsplit."""
    tokenizer = Tokenizer(sentencepiece_bpe())
    add_tokens(tokenizer, ["<unk>", "<s>", "</s>"])
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="▁", prepend_scheme="first", split=False
        )
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = template(tokenizer, "<s> $A")
    return tokenizer


def llama2() -> Fixture:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Fixture(
        sentencepiece(metaspace=False),
        tokens,
        tokenizer_class="LlamaTokenizer",
        legacy=True,
        add_bos_token=True,
    )


def mistral() -> Fixture:
    tokenizer = sentencepiece(metaspace=True)
    add_tokens(tokenizer, ["[INST]", "[/INST]"])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Fixture(tokenizer, tokens, tokenizer_class="LlamaTokenizer", legacy=False, add_bos_token=True)


def unigram_pieces(limit: int) -> Iterator[tuple[str, float]]:
    """Pieces of words, scored by log frequency with a bonus for length; then single letters."""
    counts: Counter[str] = Counter()
    for word in (w for line in LINES[:14] for w in line.split()):
        marked = "▁" + word
        counts.update(
            marked[i:j] for i in range(len(marked)) for j in range(i + 2, min(i + 9, len(marked) + 1))
        )
    total = sum(counts.values())
    ranked = sorted(counts, key=lambda piece: (-counts[piece] * (len(piece) - 1), piece))[:limit]
    for piece in ranked:
        yield piece, round(math.log(counts[piece] / total) + 0.2 * len(piece), 6)
    for place, letter in enumerate(sorted(set("▁" + "".join(LINES[:15]).replace(" ", "")))):
        yield letter, round(-14.0 - 0.01 * place, 6)


def t5() -> Fixture:
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *unigram_pieces(260)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=False))
    extra = [f"<extra_id_{number}>" for number in (2, 1, 0)]
    add_tokens(tokenizer, ["<pad>", "</s>", "<unk>", *extra])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = template(tokenizer, "$A </s>")
    tokens = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return Fixture(tokenizer, tokens, tokenizer_class="T5Tokenizer", additional_special_tokens=extra[::-1])


def xlm_roberta() -> Fixture:
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *unigram_pieces(260)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    add_tokens(tokenizer, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = template(tokenizer, "<s> $A </s>")
    tokens = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    return Fixture(tokenizer, tokens, tokenizer_class="XLMRobertaTokenizer")


def wordpieces(
    normalizer: normalizers.Normalizer, words: pre_tokenizers.PreTokenizer, *, limit: int
) -> list[str]:
    """Every letter at the start of a word and inside one, then the commonest longer pieces.

    Counted here, because the order of the library's own trainer differs between runs.
    """
    counts: Counter[str] = Counter()
    for line in LINES:
        for word, _ in words.pre_tokenize_str(normalizer.normalize_str(line)):
            for i in range(len(word)):
                counts.update(
                    ("##" if i else "") + word[i:j] for j in range(i + 1, min(i + 9, len(word) + 1))
                )
    letters = sorted(piece for piece in counts if len(piece.removeprefix("##")) == 1)
    longer = (piece for piece in counts if len(piece.removeprefix("##")) > 1)
    return [*letters, *sorted(longer, key=lambda piece: (-counts[piece] * len(piece), piece))[:limit]]


def bert() -> Fixture:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    order = [*special, *wordpieces(normalizer, words, limit=240)]
    vocab = {token: number for number, token in enumerate(order)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    add_tokens(tokenizer, special)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = template(tokenizer, "[CLS] $A [SEP]")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return Fixture(
        tokenizer, dict(zip(names, special, strict=True)), tokenizer_class="BertTokenizer", do_lower_case=True
    )


FIXTURES = {
    "byte_level_gpt2": gpt2,
    "byte_level_llama3": llama3,
    "byte_level_qwen2": qwen2,
    "sentencepiece_llama2": llama2,
    "sentencepiece_mistral": mistral,
    "unigram_t5": t5,
    "unigram_xlm_roberta": xlm_roberta,
    "wordpiece_bert": bert,
}


def goldens(tokenizer: Tokenizer) -> list[dict[str, object]]:
    """For every sample: ids with and without the template, ids of special text as plain text, texts."""
    rows: list[dict[str, object]] = []
    for text in SAMPLES:
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(text).ids
        bare = tokenizer.encode(text, add_special_tokens=False)
        tokenizer.encode_special_tokens = True
        as_text = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        rows.append(
            {
                "text": text,
                "ids": ids,
                "ids_without_template": bare.ids,
                "ids_special_as_text": as_text,
                "tokens": bare.tokens,
                "decoded": tokenizer.decode(ids, skip_special_tokens=True),
                "decoded_with_special": tokenizer.decode(ids, skip_special_tokens=False),
            }
        )
    return rows


def main() -> None:
    for name, make in FIXTURES.items():
        fixture = make()
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        fixture.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        (folder / "tokenizer_config.json").write_text(json.dumps(fixture.config, indent=2) + "\n")
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in goldens(fixture.tokenizer))
        (folder / "goldens.json").write_text(f"[\n{rows}\n]\n")
        print(f"{name}: {fixture.tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
