import numpy as np
import pytest

from data_prep.tokenizer import FILE, DocumentTokenizer, cut
from data_prep.tokenizer_config import TrainTokenizer
from data_prep.tokenizer_train import train
from runtime.errors import UserError
from tests.data_prep.samples import make_texts, write_jsonl

TEXTS = make_texts(300)
HARD = [
    "",
    " ",
    "\n\n\n",
    "\r\n\ttab  spaces   ",
    "你好，世界！",
    "😀👩‍👩‍👧 zwj",
    "\x00\x07 control",
    "a" * 5000,
    "x <|endoftext|> y",
    "<|endoftext|>",
    "naïve café ﬁ ½",
]


def trained(tmp_path, kind, texts=TEXTS, **options):
    train(TrainTokenizer(kind=kind, **options), texts, tmp_path)
    return DocumentTokenizer(tmp_path)


def test_bpe_round_trips_every_string(tmp_path):
    tokenizer = trained(tmp_path, "bpe", vocab_size=300)
    for text in HARD + TEXTS:
        (ids,) = tokenizer.encode([text])
        assert tokenizer.decode(ids) == text
        assert tokenizer.eod_id not in ids  # also where the text spells the special token
    assert tokenizer.unknown_id is None


def test_characters_round_trip_and_unknown_ones_are_marked(tmp_path):
    tokenizer = trained(tmp_path, "char", [*HARD, *TEXTS])
    for text in HARD + TEXTS:
        (ids,) = tokenizer.encode([text])
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eod_id not in ids
    (ids,) = tokenizer.encode(["a龘b龘"])
    assert (ids == tokenizer.unknown_id).tolist() == [False, True, False, True]


def test_char_vocabulary_can_be_capped_to_the_commonest(tmp_path):
    tokenizer = trained(tmp_path, "char", ["aaabbc"], vocab_size=8)
    assert tokenizer.vocab_size == 5
    tokenizer = trained(tmp_path, "char", ["hgfedcbaaaa" * 2], vocab_size=8)
    assert tokenizer.vocab_size == 8
    assert (tokenizer.encode(["ah"])[0] == tokenizer.unknown_id).tolist() == [False, True]


def test_wordpiece_looks_like_berts(tmp_path):
    tokenizer = trained(tmp_path, "wordpiece", vocab_size=400, lowercase=True)
    specials = [tokenizer._tokenizer.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")]
    assert specials == [0, 1, 2, 3]
    assert (tokenizer.eod, tokenizer.eod_id) == ("[SEP]", 3)
    ids = tokenizer.encode(["The RIVER [SEP] walks"])[0]
    assert 3 not in ids
    assert tokenizer.decode(tokenizer.encode(["The River sees"])[0]) == "the river sees"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "char"])
def test_training_twice_gives_the_same_bytes(tmp_path, kind):
    files = set()
    for number in range(3):
        directory = tmp_path / str(number)
        directory.mkdir()
        trained(directory, kind, vocab_size=500)
        files.add((directory / FILE).read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "char"])
def test_transformers_opens_the_directory_and_encodes_equally(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    tokenizer = trained(tmp_path, kind, vocab_size=500)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:50]:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode([text])[0].tolist() == expected
        if kind != "wordpiece":
            assert theirs.decode(expected) == text
    assert len(theirs) == tokenizer.vocab_size
    if kind == "wordpiece":
        pair = theirs("the river", "the stone")["input_ids"]
        assert (pair[0], pair[-1]) == (theirs.cls_token_id, theirs.sep_token_id)
        assert theirs.mask_token == "[MASK]"
    else:
        assert theirs.eos_token_id == tokenizer.eod_id


def test_a_given_tokenizers_padding_and_truncation_are_ignored(tmp_path):
    tokenizer = trained(tmp_path, "bpe", vocab_size=300)
    raw = tokenizer._tokenizer
    raw.enable_truncation(4)
    raw.enable_padding(length=8)
    raw.save(str(tmp_path / FILE))
    (ids,) = DocumentTokenizer(tmp_path).encode(["a b c d e f g h"])
    assert DocumentTokenizer(tmp_path).decode(ids) == "a b c d e f g h"


def test_an_unusable_tokenizer_is_named(tmp_path):
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a usable tokenizer"):
        DocumentTokenizer(tmp_path)


def test_the_end_token_can_be_chosen_and_must_exist(tmp_path):
    trained(tmp_path, "wordpiece", vocab_size=400)
    assert DocumentTokenizer(tmp_path, "[CLS]").eod_id == 2
    with pytest.raises(UserError, match=r"has no token '<eos>'; set tokenizer\.eod"):
        DocumentTokenizer(tmp_path, "<eos>")


def test_no_text_and_a_too_small_vocabulary_are_errors(tmp_path):
    for kind in ("bpe", "wordpiece", "char"):
        with pytest.raises(UserError, match="no text to train"):
            train(TrainTokenizer(kind=kind), [], tmp_path)
    with pytest.raises(UserError, match=r"vocab_size=8 cannot hold"):
        train(TrainTokenizer(kind="wordpiece", vocab_size=8), TEXTS, tmp_path)


@pytest.mark.parametrize("limit", [1, 7, 50, 1000])
def test_cutting_a_long_text_loses_nothing(limit):
    text = "".join(TEXTS)[:3000]
    pieces = list(cut(text, limit))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= limit


def test_cutting_between_lines_keeps_the_tokens(tmp_path):
    tokenizer = trained(tmp_path, "bpe", vocab_size=400)
    text = "\n".join(t.strip().replace("\n", " ") for t in TEXTS)
    whole = tokenizer.encode([text])[0]
    parts = np.concatenate(tokenizer.encode(list(cut(text, 500))))
    assert np.array_equal(whole, parts)


def test_a_given_tokenizer_is_used_and_copied(tmp_path, run):
    trained(tmp_path, "bpe", vocab_size=300)
    source = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    made = run(source, "out", tokenizer__path=str(tmp_path / FILE))
    assert (tmp_path / "out" / FILE).read_bytes() == (tmp_path / FILE).read_bytes()
    assert made.tokenizer.eod == "<|endoftext|>"
