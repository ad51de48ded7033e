"""The checks of a pretraining config that concern its data, its model and its objective."""

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pydantic

from data_prep.shards import Shards
from data_prep.tokenizer import SpecialTokens
from model.config import ModelConfig
from model.config_checks import problem_of_flex
from pretrain.objectives.traits import TRAITS, layout_for
from runtime.config import Problem
from runtime.errors import EXIT_BAD_INPUT, UserError

if TYPE_CHECKING:
    from data_prep.order import Order
    from pretrain.config import PretrainConfig

FP8_MULTIPLE = 16  # as model.float8, which takes torch
_LEAST_TEXT = 2  # tokens of a document or pair that a row must have room for


def check_data(config: "PretrainConfig") -> Iterator[Problem]:
    """The data must be there, fit together, and have what the objective needs."""
    opened, broken = [], set()
    for source in config.data.sources:
        try:
            opened.append(Shards(source.path, "train"))
        except UserError as error:
            broken.add(source.path)
            yield Problem("data.train", str(error))
    valid = None
    # Where the whole directory is bad, a line above says so already.
    if config.evaluate.every_steps and config.data.valid_path not in broken:
        try:
            valid = _open_validation(config)
        except UserError as error:
            yield Problem("data.valid", f"{error}, or write evaluate.every_steps: 0")
    yield from _check_layout(config)
    yield from _check_weights(config)
    yield from _check_masking(config)
    if opened:
        splits = [*opened, *([valid] if valid else [])]
        yield from _check_sources(config, opened)
        yield from _check_one_tokenizer(splits)
        yield from _check_sentences(config, splits)
        yield from _check_tokens(config, opened[0])
        yield from _check_prompts(config, opened[0])
        yield from _check_model(config, opened[0])


def check_without_data(config: "PretrainConfig") -> Iterator[Problem]:
    """What can be seen without the data: the model is taken as the config alone says it."""
    yield from _check_layout(config)
    yield from _check_weights(config)
    yield from _check_masking(config)
    yield from _check_model(config, None)


def _open_validation(config: "PretrainConfig") -> Shards:
    shards = Shards(config.data.valid_path, "valid")
    if shards.tokens < 2:
        raise UserError(f"{config.data.valid_path} has an empty split; prepare more")
    return shards


def _check_sources(config: "PretrainConfig", opened: list[Shards]) -> Iterator[Problem]:
    for shards in opened:
        if shards.tokens < config.data.seq_len:
            yield Problem(
                "data.seq_len",
                f"{config.data.seq_len} is more than all {shards.tokens} tokens of "
                f"{shards.directory}; write {shards.tokens} or less, or prepare more text",
            )


def _check_weights(config: "PretrainConfig") -> Iterator[Problem]:
    sources = config.data.sources
    if not any(source.weight for source in sources):
        yield Problem("data.train", "every weight is 0; give one source a weight")
    before = 0
    for number, stage in enumerate(config.data.stages):
        if len(stage.weights) != len(sources):
            yield Problem(
                "data.stages",
                f"stage {number} has {len(stage.weights)} weights, and data.train has "
                f"{len(sources)} sources; write one weight for each",
            )
        elif min(stage.weights) < 0 or not any(stage.weights):
            yield Problem(
                "data.stages",
                f"stage {number} has weights {list(stage.weights)}; expected 0 or more, not all 0",
            )
        if stage.from_step <= before:
            yield Problem(
                "data.stages",
                f"stage {number} begins at step {stage.from_step}, expected after {before}",
            )
        before = stage.from_step


def check_supply(config: "PretrainConfig", order: "Order") -> None:
    """Refuse a run for whose steps `max_repetition` leaves too little data. Raises UserError."""
    if order.end is None or order.end >= config.total_steps:
        return
    told = [
        f"{shards.directory} {cutting.tokens:,} tokens × "
        f"{'no bound' if source.max_repetition is None else source.max_repetition}"
        for shards, cutting, source in zip(
            order.shards, order.cuttings, config.data.sources, strict=True
        )
    ]
    raise UserError(
        f"data.train: the sources last for {order.end:,} steps of batch.global_batch_size="
        f"{order.sizes.final}, and steps={config.total_steps:,} ({'; '.join(told)}); raise a "
        "max_repetition, add a source, or shorten the run",
        status=EXIT_BAD_INPUT,
    )


def _check_one_tokenizer(splits: list[Shards]) -> Iterator[Problem]:
    first = splits[0]
    for other in splits[1:]:
        if not other.has_tokenizer_of(first):
            yield Problem(
                _key_of(other),
                f"{other.directory} was made with another tokenizer than {first.directory}, or "
                "with other special tokens; prepare both with the same tokenizer.path",
            )


def _key_of(shards: Shards) -> str:
    return "data.train" if shards.split == "train" else "data.valid"


def _check_layout(config: "PretrainConfig") -> Iterator[Problem]:
    traits, layout = TRAITS[config.objective], layout_for(config)
    if layout.packing not in traits.packings:
        yield Problem(
            "data.packing",
            f"{layout.packing} does not go with objective: {config.objective}; write "
            f"{' or '.join(traits.packings)}, or leave the key out",
        )
    if traits.overhead and layout.room < _LEAST_TEXT:
        yield Problem(
            "data.seq_len",
            f"{config.data.seq_len} has no room for a text beside the {traits.overhead} tokens "
            f"that {config.objective} adds; write {traits.overhead + _LEAST_TEXT} or more",
        )


def _check_sentences(config: "PretrainConfig", opened: list[Shards]) -> Iterator[Problem]:
    if not TRAITS[config.objective].needs_sentences:
        return
    for shards in opened:
        if not shards.has_sentences:
            yield Problem(
                _key_of(shards),
                f"{shards.directory} does not say where sentences end, which {config.objective} "
                "needs; prepare it with input.sentences: true",
            )
        elif config.objective == "masked_lm_nsp" and len(shards) < 2:
            yield Problem(
                "objective",
                f"masked_lm_nsp takes texts of other documents, and split {shards.split!r} of "
                f"{shards.directory} has one document; write masked_lm_sop, or prepare more",
            )


def _check_tokens(config: "PretrainConfig", data: Shards) -> Iterator[Problem]:
    needed = TRAITS[config.objective].tokens
    if not needed and config.objective != "fill_in_the_middle":
        return
    try:
        tokens = SpecialTokens(data.tokenizer_dir)
    except UserError as error:
        yield Problem("data.train", str(error))
        return
    roles = {"mask": tokens.mask_id, "cls": tokens.cls_id}
    roles |= {"sep": tokens.sep_id, "pad": tokens.pad_id}
    missing = [f"{role}_token" for role in needed if roles[role] is None]
    if missing:
        yield Problem(
            "data.train",
            f"the tokenizer of {data.directory} has no {', '.join(missing)}, which "
            f"{config.objective} needs; prepare the data with tokenizer.train.kind: wordpiece, or "
            "with tokenizer.train.special_tokens: bert",
        )
    if config.objective != "fill_in_the_middle":
        return
    names = config.infilling
    absent = [n for n in (names.prefix, names.middle, names.suffix) if tokens.id_of(n) is None]
    if absent:
        yield Problem(
            "infilling",
            f"the tokenizer of {data.directory} has no token {', '.join(absent)}; prepare the data "
            f"with tokenizer.train.extra_tokens: [{', '.join(absent)}], or name tokens that it has",
        )
    elif len({names.prefix, names.middle, names.suffix}) < 3:
        yield Problem("infilling", "prefix, middle and suffix must be three different tokens")


def _check_prompts(config: "PretrainConfig", data: Shards) -> Iterator[Problem]:
    prompts = config.evaluate.prompts
    traits = TRAITS[config.objective]
    if not prompts or not config.evaluate.every_steps:
        return
    try:
        tokens = SpecialTokens(data.tokenizer_dir)
    except UserError as error:
        yield Problem("evaluate.prompts", str(error))
        return
    room = config.data.seq_len - max(traits.overhead, 1)
    for number, prompt in enumerate(prompts):
        ids = tokens.encoded(prompt)
        length = len(ids)
        if length > room:
            yield Problem(
                "evaluate.prompts",
                f"prompt {number} has {length} tokens, expected at most {room} (data.seq_len = "
                f"{config.data.seq_len}); shorten it",
            )
        if traits.is_masked and not set(ids) - (tokens.special_ids - {tokens.mask_id}):
            yield Problem(
                "evaluate.prompts",
                f"prompt {number} holds no word that the tokenizer knows, and {config.objective} "
                "fills words in; write another text",
            )


def _check_masking(config: "PretrainConfig") -> Iterator[Problem]:
    if not TRAITS[config.objective].is_masked:
        return
    masking = config.masking
    total = masking.mask_fraction + masking.random_fraction
    if total > 1 + 1e-9:
        yield Problem(
            "masking.random_fraction",
            f"{masking.random_fraction} and mask_fraction = {masking.mask_fraction} are more than "
            f"1; write at most {1 - masking.mask_fraction:.2g}",
        )
    if masking.segmenter == "jieba" and masking.unit == "token":
        yield Problem(
            "masking.segmenter",
            "jieba finds words, and masking.unit: token hides single tokens; write masking.unit: "
            "word (or span), or segmenter: none",
        )
    if masking.segmenter == "jieba" and importlib.util.find_spec("jieba") is None:
        yield Problem(
            "masking.segmenter",
            "jieba is not installed here; run pip install jieba, or write none",
        )


def _check_model(config: "PretrainConfig", data: Shards | None) -> Iterator[Problem]:
    try:
        model = config.model_config_alone() if data is None else config.model_config_for(data)
    except pydantic.ValidationError as error:
        for item in error.errors(include_url=False):
            dotted = ".".join(map(str, ("model", *item["loc"])))
            yield Problem(dotted, item["msg"].removeprefix("Value error, "))
        return
    except ValueError as error:
        yield Problem("model.preset", str(error))
        return
    if data is not None and model.vocab_size != data.vocab_size:
        yield Problem(
            "model.vocab_size",
            f"{model.vocab_size} differs from the {data.vocab_size} of the tokenizer in "
            f"{data.directory}; leave the key out and it is taken from the data",
        )
    if config.data.seq_len > model.max_seq_len:
        yield Problem(
            "data.seq_len",
            f"{config.data.seq_len} is more than model.max_seq_len = {model.max_seq_len}; "
            f"write model.max_seq_len: {config.data.seq_len}, or shorten the sequences",
        )
    if config.attention == "flex" and (problem := problem_of_flex(model)) is not None:
        yield Problem("attention", f"flex cannot train this model: {problem}; write auto")
    if config.precision == "fp8" and model.d_model % FP8_MULTIPLE:
        yield Problem(
            "precision",
            f"fp8 takes linear maps whose widths are multiples of {FP8_MULTIPLE}, and every map of "
            f"a block has model.d_model = {model.d_model}; write another model.d_model, or bf16",
        )
    yield from _check_head(config, model)


def _check_head(config: "PretrainConfig", model: ModelConfig) -> Iterator[Problem]:
    """The objective's head must be one that the family has."""
    traits = TRAITS[config.objective]
    if traits.is_masked == model.causal:
        sees = "only what stands before a token" if model.causal else "both sides"
        ours = "bert-tiny or modernbert-tiny" if traits.is_masked else "llama-tiny or gpt2-tiny"
        other = "causal_lm" if model.causal else "masked_lm"
        yield Problem(
            "objective",
            f"{config.objective} does not go with family {model.family}, which sees {sees}; write "
            f"model.preset: {ours} (or a larger one), or objective: {other}",
        )
    elif traits.head not in model.heads:
        yield Problem(
            "objective",
            f"{config.objective} scores pairs, for which family {model.family} has no head; write "
            "model.preset: bert-tiny (or a larger one), or objective: masked_lm",
        )
