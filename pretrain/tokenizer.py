"""The tokenizer that a checkpoint carries: it begins a text as the model was trained to see one."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

FILE = "tokenizer.json"


def begin_texts_with(directory: Path, token_id: int) -> None:
    """Let a directory's tokenizer put a token before each text, where it adds none already.

    Models trained on whole documents have seen the end-of-document token before each of them, and
    never a text without it. With this, `AutoTokenizer` and all who use it ask as was trained.
    """
    path = directory / FILE
    tokenizer: Any = Tokenizer.from_file(str(path))
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    if tokenizer.encode("a").ids != plain:
        return  # it frames texts in its own way, which is the user's choice
    token = tokenizer.id_to_token(token_id)
    template = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, token_id)]
    )
    # Byte-level tokenizers have one that adds nothing but trims offsets; it stays.
    existing = tokenizer.post_processor
    parts = [template] if existing is None else [existing, template]
    tokenizer.post_processor = processors.Sequence(parts)
    tokenizer.save(str(path), pretty=True)
