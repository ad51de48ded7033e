"""Tokenizers that exist, in the forms that people have them in."""

import string

import orjson
import pytest

from data_prep.config import DataPrepConfig, check
from data_prep.tokenizer import CONFIG_FILE, FILE, DocumentTokenizer, SpecialTokens
from data_prep.tokenizer_config import TokenizerChoice, TrainTokenizer
from data_prep.tokenizer_load import identity, is_lowercase, place
from data_prep.tokenizer_train import train
from runtime.config import ConfigError, load
from runtime.errors import UserError
from tests.data_prep.samples import make_texts, write_jsonl

CHINESE = "自然语言处理是人工智能的重要方向你好世界"
ENTRIES = [
    *("[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *string.ascii_lowercase,
    *("##" + letter for letter in string.ascii_lowercase),
    *string.digits,
    *("##" + digit for digit in string.digits),
    *sorted(set(CHINESE)),
    *(",", ".", "!", "，", "。", "[", "]", "'", "-", "(", ")", "river", "##er", "un", "##aff"),
    *("##able", "naive", "the", "old", "walk"),
]
TEXTS = [
    "Unaffable RIVER walks, naïve old Émigré (the 3rd)!",
    CHINESE + "，abc你好。",
    "[CLS] the [MASK] river[SEP] [UNK] x [PAD]",
    "x" * 150 + " river",
    "don't re-walk\tthe\nriver\u200b\x00 \ufffd ﬁ Ａ 𠀀 日本",
    "",
    "   ",
]


def vocabulary(directory, entries=ENTRIES):
    path = directory / "vocab.txt"
    path.write_text("\n".join(entries) + "\n", encoding="utf-8")
    return path


def placed(path, **choice):
    out = path.parent / "out"
    out.mkdir(exist_ok=True)
    place(TokenizerChoice(path=str(path), **choice), out)
    return out


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_encodes_as_transformers_bert_does(tmp_path, lowercase):
    transformers = pytest.importorskip("transformers")
    entries = ENTRIES if lowercase else [*ENTRIES, "RIVER", "É", "##migr", "##é", "U"]
    path = vocabulary(tmp_path, entries)
    directory = placed(path, lowercase=lowercase)
    theirs = transformers.BertTokenizer(vocab=str(path), do_lower_case=lowercase)
    opened = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer = DocumentTokenizer(directory)
    assert (tokenizer.eod, tokenizer.eod_id, tokenizer.vocab_size) == ("[SEP]", 4, len(entries))
    special = {0, 3, 4, 5}
    for text in TEXTS + make_texts(100):
        (ids,) = tokenizer.encode([text])
        assert not special & set(ids.tolist())
        if "[" not in text:  # there the classic tokenizer sees special tokens
            assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"], text
            assert ids.tolist() == opened(text, add_special_tokens=False)["input_ids"]
    assert opened("the river")["input_ids"] == theirs("the river")["input_ids"]
    assert (opened.mask_token, opened.pad_token_id) == ("[MASK]", 0)
    assert SpecialTokens(directory).special_ids == {0, 2, 3, 4, 5}


def test_how_case_is_decided(tmp_path):
    path = vocabulary(tmp_path)
    choice = TokenizerChoice(path=str(path))
    assert is_lowercase(choice)
    assert not is_lowercase(TokenizerChoice(path=str(path), lowercase=False))
    vocabulary(tmp_path, [*ENTRIES, "River"])
    assert not is_lowercase(choice)
    assert identity(choice)["lowercase"] is False
    (tmp_path / CONFIG_FILE).write_text('{"do_lower_case": true}')
    assert is_lowercase(choice)
    assert identity(choice)["lowercase"] is True
    assert identity(choice)["config_sha256"] is not None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["[UNK]", "[SEP]", "a", "b", "a"], r"vocab\.txt: lines 3 and 5 are both 'a'"),
        (["[SEP]", "a"], r"vocab\.txt: has no line \[UNK\]"),
        (["[UNK]", "a"], r"no end-of-text token found; set tokenizer\.eod"),
    ],
)
def test_a_vocabulary_that_cannot_be_used(tmp_path, entries, message):
    with pytest.raises(UserError, match=message):
        placed(vocabulary(tmp_path, entries))


def test_a_vocabulary_of_few_special_tokens(tmp_path):
    directory = placed(vocabulary(tmp_path, ["[UNK]", "the", "[END]"]), eod="[END]")
    tokenizer = DocumentTokenizer(directory)
    assert (tokenizer.eod, tokenizer.unknown_id) == ("[END]", 0)
    assert tokenizer.encode(["the The x"])[0].tolist() == [1, 1, 0]


def test_windows_line_ends(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join(ENTRIES).encode())
    assert DocumentTokenizer(placed(path)).vocab_size == len(ENTRIES)


def test_a_tokenizer_json_is_copied(tmp_path):
    train(TrainTokenizer(vocab_size=300), make_texts(50), tmp_path)
    out = placed(tmp_path / FILE)
    for name in (FILE, CONFIG_FILE):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    (tmp_path / CONFIG_FILE).unlink()
    out = placed(tmp_path / FILE)
    assert orjson.loads((out / CONFIG_FILE).read_bytes())["eos_token"] == "<|endoftext|>"
    assert identity(TokenizerChoice(path=str(tmp_path)))["config_sha256"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["path=DIR/nothing.txt"], r"is no tokenizer\.json, \.model or vocab\.txt"),
        (["path=DIR/x.jsonl"], r"is no tokenizer\.json, \.model or vocab\.txt"),
        (["path=DIR/tokenizer.json", "lowercase=true"], r"goes with a vocab\.txt alone"),
        (["lowercase=true"], r"goes with tokenizer\.path; write train\.lowercase"),
    ],
)
def test_mistakes_are_named(tmp_path, overrides, message):
    path = write_jsonl(tmp_path / "x.jsonl", ["text"])
    (tmp_path / FILE).write_text("{}")
    base = [f"input.paths={path}", f"output={tmp_path}/out"]
    own = [f"tokenizer.{o}".replace("DIR", str(tmp_path)) for o in overrides]
    with pytest.raises(ConfigError, match=message):
        load(DataPrepConfig, None, base + own, check)
