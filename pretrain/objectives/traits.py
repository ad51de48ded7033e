"""What each objective is, as data. Torch-free: a config is checked against it."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from data_prep.samples import Layout, Packing
from pretrain.sections import Objective

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig

Head = Literal["causal_lm", "masked_lm", "pretraining"]


class Traits(NamedTuple):
    """The fixed facts of one objective."""

    head: Head
    packings: tuple[Packing, ...]  # that it takes; the first is its own
    overhead: int = 0  # positions that it adds to a segment
    tokens: tuple[str, ...] = ()  # roles that the tokenizer must have a token for
    needs_sentences: bool = False

    @property
    def is_masked(self) -> bool:
        """Whether tokens are hidden and seen from both sides."""
        return self.head != "causal_lm"


_BERT_TOKENS = ("mask", "cls", "sep", "pad")
_PAIRS = Traits("pretraining", ("padded",), 3, _BERT_TOKENS, needs_sentences=True)

TRAITS: dict[Objective, Traits] = {
    "causal_lm": Traits("causal_lm", ("concat", "documents", "best_fit", "padded")),
    "prefix_lm": Traits("causal_lm", ("concat", "documents", "best_fit", "padded")),
    # A window that documents begin and end in cannot be turned around as one.
    "fill_in_the_middle": Traits("causal_lm", ("best_fit", "padded"), 3),
    "masked_lm": Traits("masked_lm", ("best_fit", "concat", "padded"), 2, _BERT_TOKENS),
    "masked_lm_nsp": _PAIRS,
    "masked_lm_sop": _PAIRS,
}


def layout_for(config: "PretrainConfig") -> Layout:
    """How the objective wants its samples."""
    traits = TRAITS[config.objective]
    packing = config.data.packing or traits.packings[0]
    is_stream = packing in ("concat", "documents")
    return Layout(
        packing,
        config.data.seq_len,
        overhead=traits.overhead,
        lookahead=int(is_stream and not traits.is_masked),
        drops_eod=traits.is_masked and not is_stream,
    )
