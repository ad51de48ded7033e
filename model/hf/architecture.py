"""Which head a directory holds, by the class that its config.json names. Imports no torch."""

from pathlib import Path

from model.config import ModelConfig
from model.hf.config import ARCHITECTURES, read_json
from model.hf.errors import CheckpointError

TRUNK = "trunk"  # stands for a head where a directory holds none


def stored_head(directory: Path, config: ModelConfig) -> str:
    """The head that config.json names; "trunk" for a class without one, which holds no tensors.

    Raises `CheckpointError` for a head that the family does not have.
    """
    raw = read_json(directory / "config.json")
    if config.family == "custom":
        head = raw.get("head", config.lm_head)
        if head not in config.heads:
            raise CheckpointError(f"head: got {head!r}, expected one of {', '.join(config.heads)}")
        return str(head)
    named = raw.get("architectures") or []
    if not isinstance(named, list):
        raise CheckpointError(f"architectures: got {named!r}, expected a list of names")
    for head in config.heads:
        if ARCHITECTURES[config.family, head] in named:
            return head
    is_bare = trunk_class(config.family) in named and not (config.causal and config.tie_embeddings)
    return TRUNK if is_bare else config.lm_head


def trunk_class(family: str) -> str:
    """The Hugging Face class of a family's model without a head."""
    return ARCHITECTURES[family, "sequence"].replace("ForSequenceClassification", "Model")
