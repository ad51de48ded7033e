import json

import pytest
from transformers import AutoTokenizer

from finetune.tokenizer import TextTokenizer
from model.hf import read_config
from runtime.errors import UserError
from tests.finetune.toys import END, byte_tokenizer, checkpoint, word_tokenizer


def opened(directory, max_length=None):
    return TextTokenizer(directory, read_config(directory), max_length)


def settings(directory, **values):
    (directory / "tokenizer_config.json").write_text(json.dumps(values))


def test_truncation_is_counted_and_keeps_the_start(tmp_path):
    tokenizer = opened(checkpoint(tmp_path / "base"), 3)
    found, truncated = tokenizer.encode(["w0 w1 w2", "w0 w1 w2 w3", "w4"])
    assert [ids.tolist() for ids in found] == [[2, 3, 4], [2, 3, 4], [6]]
    assert truncated == 1


def test_an_appended_end_that_pads_as_well_is_left_out(tmp_path):
    """Hugging Face pools at the last token that is not padding: END there would be skipped."""
    tokenizer = opened(checkpoint(tmp_path / "base", word_tokenizer(appends_end=True)), 8)
    assert tokenizer.pad_id == 0
    assert tokenizer.encode(["w0 w1"])[0][0].tolist() == [2, 3]


def test_special_tokens_in_a_text_are_text(tmp_path):
    tokenizer = opened(checkpoint(tmp_path / "base", byte_tokenizer()))
    ids = tokenizer.encode([f"a{END}"])[0][0]
    assert len(ids) == 1 + len(END)
    assert tokenizer.pad_id not in ids


def test_a_text_without_tokens_is_one_padding_token(tmp_path):
    (ids,), _ = opened(checkpoint(tmp_path / "base")).encode(["\u2003"])
    assert ids.tolist() == [0]


def test_what_pads(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens(["<pad>", "<other>"])
    directory = checkpoint(tmp_path / "base", tokenizer)
    pad, other = (tokenizer.token_to_id(t) for t in ("<pad>", "<other>"))
    assert opened(directory).pad_id == 0  # end of text
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "pad_token_id": other}))
    assert opened(directory).pad_id == other
    # An ordinary word would be taken for padding at the end of a text.
    (directory / "config.json").write_text(json.dumps({**config, "pad_token_id": 5}))
    assert opened(directory).pad_id == 0
    settings(directory, pad_token={"content": "<pad>"})
    assert opened(directory).pad_id == pad
    tokenizer.enable_padding(pad_id=other, pad_token="<other>")
    tokenizer.save(str(directory / "tokenizer.json"))
    assert opened(directory).pad_id == other
    assert [len(ids) for ids in opened(directory).encode(["w0", "w0 w1"])[0]] == [1, 2]


def test_nothing_that_pads_is_refused(tmp_path):
    directory = checkpoint(tmp_path / "base")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    with pytest.raises(UserError, match=r"set pad_token in tokenizer_config\.json"):
        opened(directory)


@pytest.mark.parametrize("content", [None, "{", '{"model": 1}'])
def test_unusable_tokenizers_are_refused(tmp_path, content):
    directory = checkpoint(tmp_path / "base")
    (directory / "tokenizer.json").unlink()
    if content is not None:
        (directory / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json: (no such file|not a usable tokenizer)"):
        opened(directory)


@pytest.mark.parametrize("make", [word_tokenizer, byte_tokenizer])
def test_transformers_opens_the_same_tokenizer(tmp_path, make):
    directory = checkpoint(tmp_path / "base", make())
    tokenizer = opened(directory, 9)
    tokenizer.write_settings(directory)
    texts = ["w0 w1 w2", "miaow", "w1 " * 12 + "w2", f"w0 {END} w1"]
    theirs = AutoTokenizer.from_pretrained(directory)
    batch = theirs(texts, truncation=True, padding=True)
    found, _ = tokenizer.encode(texts)
    longest = max(map(len, found))
    for ours, ids, mask in zip(found, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids == [*ours.tolist(), *[tokenizer.pad_id] * (longest - len(ours))]
        assert sum(mask) == len(ours)
    assert opened(directory).max_length == 9  # predict reads it from there
