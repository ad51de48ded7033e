"""From a config and its data to the objective."""

from collections.abc import Sequence

import numpy as np

from data_prep.shards import Shards
from data_prep.tokenizer import SpecialTokens
from pretrain.config import PretrainConfig
from pretrain.objectives.causal_lm import CausalLM
from pretrain.objectives.fill_in_the_middle import FillInTheMiddle, Sentinels
from pretrain.objectives.masked_lm import Frame, MaskedLM
from pretrain.objectives.masking import FindWords, Masker, Vocabulary
from pretrain.objectives.objective import Objective
from pretrain.objectives.prefix_lm import PrefixLM
from pretrain.objectives.segmenter import jieba_cut
from pretrain.objectives.sentence_pairs import OtherDocuments, SentencePairs
from pretrain.objectives.traits import layout_for
from pretrain.objectives.words import ChineseWords, VocabularyWords


def make(config: PretrainConfig, shards: Sequence[Shards], seed: int) -> Objective:
    """See `pretrain.objectives.make_objective`. The config has passed its checks."""
    layout, eod_id = layout_for(config), shards[0].eod_id
    if config.objective == "causal_lm":
        return CausalLM(layout, eod_id)
    if config.objective == "prefix_lm":
        return PrefixLM(layout, eod_id, seed)
    tokens = SpecialTokens(shards[0].tokenizer_dir)
    if config.objective == "fill_in_the_middle":
        names = config.infilling
        sentinels = Sentinels(
            *(_existing(tokens.id_of(name)) for name in (names.prefix, names.middle, names.suffix))
        )
        return FillInTheMiddle(layout, eod_id, names, sentinels, seed)
    frame = Frame(*map(_existing, (tokens.cls_id, tokens.sep_id, tokens.pad_id)))
    masker = Masker(config.masking, vocabulary(tokens, eod_id), _words(config, tokens), seed)
    if config.objective == "masked_lm":
        return MaskedLM(layout, frame, masker)
    others = OtherDocuments(shards) if config.objective == "masked_lm_nsp" else None
    return SentencePairs(layout, frame, masker, pairs=config.pairs, seed=seed, others=others)


def vocabulary(tokens: SpecialTokens, eod_id: int) -> Vocabulary:
    """What masking must know of a tokenizer."""
    is_special = np.zeros(tokens.vocab_size, dtype=bool)
    is_special[[*tokens.special_ids, eod_id]] = True
    return Vocabulary(_existing(tokens.mask_id), is_special, tokens.ids[~is_special[tokens.ids]])


def _words(config: PretrainConfig, tokens: SpecialTokens) -> FindWords:
    if config.masking.segmenter == "jieba":
        return ChineseWords(tokens, jieba_cut)
    return VocabularyWords(tokens)


def _existing(number: int | None) -> int:
    assert number is not None, "the config's checks refuse a tokenizer without it"
    return number
