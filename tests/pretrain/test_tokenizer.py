"""A checkpoint's tokenizer begins texts as the model has seen them begin."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from data_prep.shards import Shards
from pretrain.tokenizer import begin_texts_with
from tests.processes import run

Write = Callable[..., Path]


@pytest.mark.parametrize(("packing", "begins"), [("best_fit", True), ("concat", False)])
def test_prompts_begin_as_documents_did(
    write_config: Write, tmp_path: Path, corpus: Path, packing: str, begins: bool
) -> None:
    path = write_config(data__packing=packing, steps=4, evaluate__every_steps=0)
    status, output = run(["-m", "pretrain", str(path)], 1)
    assert status == 0, output
    directory = tmp_path / "run/checkpoints/step_00000004"
    tokenizer, eod = AutoTokenizer.from_pretrained(directory), Shards(corpus, "train").eod_id
    ids = tokenizer("def f").input_ids
    assert (ids[0] == eod) == begins
    assert tokenizer.decode(ids, skip_special_tokens=True) == "def f"


def make(tmp_path: Path, post_processor: object | None) -> Path:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "<eos>": 2}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<eos>"])
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def encode(directory: Path) -> list[int]:
    return Tokenizer.from_file(str(directory / "tokenizer.json")).encode("ab").ids


def test_once_is_enough_and_other_ways_are_kept(tmp_path: Path) -> None:
    directory = make(tmp_path, processors.ByteLevel())
    for _ in range(2):
        begin_texts_with(directory, 2)
        assert encode(directory) == [2, 0, 1]
    template = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    begin_texts_with(make(tmp_path, template), 2)
    assert encode(directory) == [0, 1, 2]
