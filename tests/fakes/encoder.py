"""A folder as sentence-transformers publishes them: a tiny BERT of the goldens, WordPiece, pooling files."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

GOLDENS = Path(__file__).parents[1] / "goldens" / "encoders"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
MODULES = ("Transformer", "Pooling", "Normalize")


def write_encoder(
    folder: Path,
    *,
    golden: str = "bert",
    modules: tuple[str, ...] = MODULES,
    pooling: dict[str, object] | None = None,
    max_seq_length: int | None = None,
) -> Path:
    """`pooling`: the content of 1_Pooling/config.json. Without `modules` there are no such files."""
    shutil.copytree(GOLDENS / golden, folder)
    write_tokenizer(folder)
    if modules:
        room = "sentence_transformers.models"
        entries = [
            {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{room}.{kind}"}
            for i, kind in enumerate(modules)
        ]
        (folder / "modules.json").write_text(json.dumps(entries))
        (folder / "1_Pooling").mkdir()
        said = pooling or {"word_embedding_dimension": 48, "pooling_mode_cls_token": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    if max_seq_length is not None:
        said = {"max_seq_length": max_seq_length, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(said))
    return folder


def write_tokenizer(folder: Path) -> None:
    """BERT's: lower case, WordPiece, [CLS] and [SEP] around a text."""
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(VOCABULARY[:5])
    tokenizer.enable_truncation(16)  # as published files have it; nothing is ever cut here
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "BertTokenizer", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
