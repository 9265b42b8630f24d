"""Words <-> tokens: tokenizer, chat template, detokenizer, stop strings. No tensor, no other room."""
