"""Configs whose objective does not go with the data, the model or the packing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.samples import Layout
from pretrain.config import PretrainConfig
from pretrain.objectives import TRAITS, layout_for
from tests.pretrain.test_pretrain_config import errors, good, only

Write = Callable[..., Path]
MASKED = ("masked_lm", "masked_lm_nsp", "masked_lm_sop")


@pytest.fixture
def write(write_config: Write, bert_corpus: Path) -> Write:
    """A config of a masked objective on data that has all it needs, with no preset named."""

    def written(objective: str, **changes: object) -> Path:
        plain = {"model": {"max_seq_len": 64}, "data__train": str(bert_corpus)}
        return write_config(**{"objective": objective, **plain, **changes})

    return written


@pytest.mark.parametrize("objective", MASKED)
def test_a_masked_objective_starts_from_bert(write: Write, objective: str) -> None:
    config = good(write(objective))
    assert config.model.preset == "bert-tiny"  # also in the stored config
    from data_prep.shards import Shards

    model = config.model_config_for(Shards(config.data.sources[0].path))
    assert (model.family, model.causal) == ("bert", False)
    assert (model.pad_token_id, model.bos_token_id, model.eos_token_id) == (0, 2, 3)


def test_a_preset_that_is_named_stays(write: Write) -> None:
    config = good(write("masked_lm", model={"preset": "modernbert-tiny"}))
    assert config.model.preset == "modernbert-tiny"


@pytest.mark.parametrize("objective", sorted(TRAITS))
def test_every_layout(objective: str, write_config: Write) -> None:
    traits = TRAITS[objective]
    for packing in (None, *traits.packings):
        config = PretrainConfig(objective=objective, steps=1, data={"packing": packing})
        layout = layout_for(config)
        assert layout.packing == packing or (packing is None and traits.packings[0])
        is_stream = layout.packing in ("concat", "documents")
        assert layout == Layout(
            layout.packing,
            512,
            overhead={"masked_lm": 2, "fill_in_the_middle": 3}.get(
                objective, 3 * traits.needs_sentences
            ),
            lookahead=int(is_stream and objective != "masked_lm"),
            drops_eod=objective in MASKED and not is_stream,
        )


def test_masked_objectives_refuse_other_packings(write: Write) -> None:
    found = errors(write("masked_lm", data__packing="documents"))
    only(found, "data.packing", "documents", "write best_fit or concat or padded")
    found = errors(write("masked_lm_nsp", data__packing="best_fit"))
    only(found, "data.packing", "write padded, or leave the key out")


def test_objective_and_family(write: Write, write_config: Write) -> None:
    found = errors(write("masked_lm", model={"preset": "llama-tiny"}))
    only(found, "objective", "llama", "model.preset: bert-tiny", "objective: causal_lm")
    found = errors(write("causal_lm", model={"preset": "bert-tiny"}))
    only(found, "objective", "bert", "both sides", "llama-tiny", "objective: masked_lm")
    found = errors(write("masked_lm_sop", model={"preset": "modernbert-tiny"}))
    only(found, "objective", "modernbert", "bert-tiny", "objective: masked_lm")


def test_a_tokenizer_without_the_needed_tokens(write_config: Write) -> None:
    model = {"preset": "bert-tiny"}
    found = errors(write_config(objective="masked_lm", model=model))
    only(found, "mask_token, cls_token, sep_token", "tokenizer.train.special_tokens: bert")


def test_pairs_need_sentences(write: Write, tmp_path: Path, prepare_again) -> None:
    options = {"kind": "wordpiece", "vocab_size": 110}
    data = prepare_again(tmp_path, options)
    for objective in MASKED[1:]:
        found = errors(write(objective, data__train=str(data)))
        assert len(found) == 2
        for line, key in zip(found, ("data.train", "data.valid"), strict=True):
            assert f"{key}: " in line
            assert "input.sentences: true" in line
    assert good(write("masked_lm", data__train=str(data)))


def test_filling_in_needs_its_tokens(write_config: Write, fim_corpus: Path) -> None:
    found = errors(write_config(objective="fill_in_the_middle"))
    only(found, "infilling", "<|fim_prefix|>", "tokenizer.train.extra_tokens: [<|fim_prefix|>")
    keys = {"objective": "fill_in_the_middle", "data__train": str(fim_corpus)}
    assert good(write_config(**keys))
    found = errors(write_config(**keys, infilling__suffix="<|fim_prefix|>"))
    only(found, "infilling", "three different tokens")
    found = errors(write_config(**keys, data__packing="concat"))
    only(found, "data.packing", "concat", "write best_fit or padded")


def test_rows_too_short_for_the_frame(write: Write) -> None:
    only(errors(write("masked_lm", data__seq_len=3)), "data.seq_len", "write 4 or more")
    only(errors(write("masked_lm_nsp", data__seq_len=4)), "data.seq_len", "write 5 or more")


def test_fractions_of_masking(write: Write) -> None:
    found = errors(write("masked_lm", masking__mask_fraction=0.9, masking__random_fraction=0.2))
    only(found, "masking.random_fraction", "write at most 0.1")
    only(errors(write("masked_lm", masking__fraction=1.0)), "masking.fraction", "less than 1")
    assert good(write("masked_lm", masking__mask_fraction=0.9))


def test_jieba_must_be_installed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    path = write("masked_lm", masking__segmenter="jieba", masking__unit="word")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    only(errors(path), "masking.segmenter", "pip install jieba")


def test_jieba_goes_with_words(write: Write) -> None:
    pytest.importorskip("jieba")
    only(errors(write("masked_lm", masking__segmenter="jieba")), "masking.segmenter", "unit: word")
    assert good(write("masked_lm", masking__segmenter="jieba", masking__unit="span"))


def test_validation_with_another_tokenizer(
    write: Write, corpus: Path, bert_corpus: Path, tmp_path: Path
) -> None:
    found = errors(write("masked_lm", data__valid=str(corpus)))
    only(found, "data.valid", "another tokenizer", "same tokenizer.path")
    # The same tokenizer.json, but what is [MASK] there?
    other = shutil.copytree(bert_corpus, tmp_path / "other")
    path = other / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"mask_token": "[UNK]"}
    path.write_text(json.dumps(config), encoding="utf-8")
    manifest = json.loads((other / "manifest.json").read_text(encoding="utf-8"))
    entry = manifest["tokenizer"]["config"]
    entry["bytes"], entry["sha256"] = path.stat().st_size, "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = errors(write("masked_lm", data__valid=str(other)))
    only(found, "data.valid", "other special tokens")
    sources = [{"path": str(bert_corpus)}, {"path": str(other)}]
    only(errors(write("masked_lm", data__train=sources)), "data.train", "other special tokens")


def test_a_slash_at_the_end_hides_no_problem(write: Write, corpus: Path, tmp_path: Path) -> None:
    path = write("masked_lm", data__train=f"{corpus}/", data__valid=f"{corpus}/")
    only(errors(path), "mask_token")
    whole = shutil.copytree(corpus, tmp_path / "no_valid")
    manifest = json.loads((whole / "manifest.json").read_text(encoding="utf-8"))
    manifest["shards"] = [s for s in manifest["shards"] if s["split"] == "train"]
    (whole / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = errors(write("causal_lm", data__train=f"{whole}/", model={"preset": "llama-tiny"}))
    only(found, "data.valid", "split.valid > 0")


def test_mistakes_of_objective_and_data_are_told_at_once(write_config: Write) -> None:
    path = write_config(
        objective="masked_lm_nsp", data__packing="concat", model={"preset": "llama-tiny"}
    )
    text = "\n".join(errors(path))
    for part in ("data.packing", "input.sentences", "mask_token", "model.preset: bert-tiny"):
        assert part in text
