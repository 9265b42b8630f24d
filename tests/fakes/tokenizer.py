"""A real tokenizer, tiny: ids 0-25 are letters, 26 a space, 27 <end>, 28 and 29 the two bytes of an é."""

import functools
import tempfile
from pathlib import Path

import tokenizers

from penstock.text.tokenizer import Tokenizer

END = 27
VOCAB_SIZE = 30


@functools.cache
def make_tokenizer() -> Tokenizer:
    """Byte-level BPE without a single merge, through its file as any checkpoint's."""
    alphabet = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "<end>", "Ã", "©"]
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[])
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens([tokenizers.AddedToken("<end>", special=True)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        library.save(str(path))
        tokenizer = Tokenizer(path, {"eos_token": "<end>"})
        assert tokenizer.encode_rendered("ab<\ue0f0end>") == [0, 1, 4, 13, 3]  # reads its file once more: now
    return tokenizer
