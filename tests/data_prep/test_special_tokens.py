from pathlib import Path

import numpy as np
import orjson
import pytest
import tokenizers

from data_prep.config import DataPrepConfig, check
from data_prep.tokenizer import CONFIG_FILE, FILE, DocumentTokenizer, SpecialTokens
from data_prep.tokenizer_config import BERT_SPECIALS, TrainTokenizer
from data_prep.tokenizer_train import train
from data_prep.words import continues_word, ends_in_word
from runtime.config import ConfigError, load
from runtime.errors import UserError
from tests.data_prep.samples import make_texts, write_jsonl

TEXTS = [*make_texts(300), "don't (stop) the_under-score, 12 x's\nnew line “quoted”. 你好，世界"]
FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
ROLES = dict(zip(("pad", "unk", "cls", "sep", "mask"), BERT_SPECIALS, strict=True))


def trained(directory: Path, kind: str, **options) -> DocumentTokenizer:
    directory.mkdir(exist_ok=True)
    train(TrainTokenizer(kind=kind, **options), TEXTS, directory)
    return DocumentTokenizer(directory)


@pytest.mark.parametrize("kind", ["bpe", "char", "wordpiece"])
def test_berts_special_tokens_open_in_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    tokenizer = trained(tmp_path, kind, special_tokens="bert", vocab_size=600, extra_tokens=FIM)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for number, (role, token) in enumerate(ROLES.items()):
        assert getattr(theirs, f"{role}_token") == token
        assert getattr(theirs, f"{role}_token_id") == number
    assert (tokenizer.eod, tokenizer.eod_id) == ("[SEP]", 3)
    assert len(theirs) == tokenizer.vocab_size
    one, two = (tokenizer.encode([text])[0].tolist() for text in ("the river", "a stone"))
    assert theirs("the river")["input_ids"] == [2, *one, 3]
    pair = theirs("the river", "a stone", return_token_type_ids=True)
    assert pair["input_ids"] == [2, *one, 3, *two, 3]
    assert pair["token_type_ids"] == [0] * (len(one) + 2) + [1] * (len(two) + 1)
    assert theirs.convert_tokens_to_ids(list(FIM)) == [5, 6, 7]
    assert theirs("<|fim_middle|>", add_special_tokens=False)["input_ids"] == [6]
    assert theirs.decode([2, *one, 3], skip_special_tokens=True) == "the river"
    assert set(FIM) <= set(theirs.all_special_tokens)


@pytest.mark.parametrize("kind", ["bpe", "char", "wordpiece"])
@pytest.mark.parametrize("special", ["auto", "bert"])
def test_special_tokens_written_in_a_text_stay_text(tmp_path, kind, special):
    tokenizer = trained(tmp_path, kind, special_tokens=special, extra_tokens=FIM)
    special_ids = SpecialTokens(tmp_path).special_ids
    for token in (*FIM, *BERT_SPECIALS, "<|endoftext|>"):
        (ids,) = tokenizer.encode([f"the {token} river{token}"])
        assert len(ids) > 5
        assert not set(ids.tolist()) & (special_ids - {tokenizer.unknown_id})
        if kind == "bpe":
            assert tokenizer.decode(ids) == f"the {token} river{token}"


@pytest.mark.parametrize("kind", ["bpe", "char", "wordpiece"])
def test_training_with_special_tokens_twice_gives_the_same_bytes(tmp_path, kind):
    made = set()
    for name in ("a", "b"):
        trained(tmp_path / name, kind, special_tokens="bert", extra_tokens=FIM, vocab_size=500)
        made.add(tuple((tmp_path / name / file).read_bytes() for file in (FILE, CONFIG_FILE)))
    assert len(made) == 1


def test_the_specials_and_the_roles(tmp_path):
    trained(tmp_path / "bert", "bpe", special_tokens="bert", vocab_size=400, extra_tokens=FIM)
    found = SpecialTokens(str(tmp_path / "bert"))
    assert (found.pad_id, found.cls_id, found.sep_id, found.mask_id) == (0, 2, 3, 4)
    assert found.special_ids == frozenset(range(8))
    assert [found.id_of(token) for token in FIM] == [5, 6, 7]
    assert found.id_of("<|nothing|>") is None
    trained(tmp_path / "gpt", "bpe", vocab_size=400)
    found = SpecialTokens(tmp_path / "gpt")
    assert (found.pad_id, found.cls_id, found.sep_id, found.mask_id) == (0, None, None, None)
    assert found.special_ids == {0}
    assert not found.continuations[0]


def split_into_words(found, tokenizer, text):
    (ids,) = tokenizer.encode([text])
    starts = found.word_starts(ids)
    assert starts.shape == ids.shape
    assert starts[0] or found.continuations[ids[0]]
    groups = np.split(ids, np.flatnonzero(starts[1:]) + 1)
    words = [tokenizer.decode(group).strip(" ") for group in groups]
    return [word for word in words if word]  # a space can be a token of its own


def test_words_of_byte_level_bpe(tmp_path):
    tokenizer = trained(tmp_path, "bpe", vocab_size=300)  # few merges: words are many tokens
    found = SpecialTokens(tmp_path)
    words = split_into_words(
        found, tokenizer, "Don't (stopped) the_under-score, 12 x's\nnewer\tbéé"
    )
    expected = ["Don't", "(", "stopped", ")", "the_under", "-", "score", ",", "12", "x's", "\n"]
    assert words == [*expected, "newer", "\t", "béé"]
    assert len(tokenizer.encode(["stopped"])[0]) > 2
    # Told apart by the tokens alone: whatever begins with a letter and no space continues.
    for token, continues in {"a": True, "Ġa": False, "Ċ": False, "(": False, "_": True}.items():
        assert found.continuations[found.id_of(token)] == continues


def test_chinese_characters_are_words_of_their_own(tmp_path):
    text = "你好，世界"
    for kind, size in (("bpe", 300), ("char", None), ("wordpiece", 600)):
        tokenizer = trained(tmp_path / kind, kind, vocab_size=size)
        found = SpecialTokens(tmp_path / kind)
        words = split_into_words(found, tokenizer, "龙马，精神" if kind == "bpe" else text)
        assert words == list("龙马，精神" if kind == "bpe" else text), kind


def test_words_of_wordpiece_are_its_marks(tmp_path):
    tokenizer = trained(tmp_path, "wordpiece", vocab_size=160)
    found = SpecialTokens(tmp_path)
    vocabulary = tokenizers.Tokenizer.from_file(str(tmp_path / FILE)).get_vocab()
    for token, number in vocabulary.items():
        assert found.continuations[number] == token.startswith("##")
    (ids,) = tokenizer.encode(["overstone (under)"])
    assert len(ids) > 4
    assert b"".join(found.utf8(ids)) == b"overstone(under)"
    assert split_into_words(found, tokenizer, "overstone (under)") == [
        "overstone",
        "(",
        "under",
        ")",
    ]


def test_what_tokens_write(tmp_path):
    tokenizer = trained(tmp_path, "bpe", vocab_size=500)
    found = SpecialTokens(tmp_path)
    (ids,) = tokenizer.encode([" the river\n\nsees 你"])
    texts = found.utf8(ids)
    assert texts[:2] == [b" the", b" river"]
    assert b"".join(texts).decode() == " the river\n\nsees 你"
    assert found.utf8([tokenizer.eod_id]) == [b"<|endoftext|>"]
    assert found.utf8([]) == []


def test_space_marks_and_byte_tokens_of_sentencepiece(tmp_path):
    entries = ["<s>", "<0xE4>", "<0xBD>", "<0xA0>", "▁the", "r", "iver", "▁", "(", "▁你", "好"]
    model = tokenizers.models.BPE(
        vocab={token: number for number, token in enumerate(entries)}, merges=[], byte_fallback=True
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(tmp_path / FILE))
    (tmp_path / CONFIG_FILE).write_text('{"bos_token": {"content": "<s>"}}')
    found = SpecialTokens(tmp_path)
    continued = [entries[number] for number in np.flatnonzero(found.continuations)]
    assert continued == ["<0xBD>", "<0xA0>", "r", "iver"]
    assert found.utf8([0, 4, 5, 7, 1]) == [b"<s>", b" the", b"r", b" ", b"\xe4"]
    starts = found.word_starts([4, 6, 8, 6, 1, 2, 3, 10])
    assert starts.tolist() == [True, False, True, True, True, False, False, True]


@pytest.mark.parametrize(
    ("piece", "continues", "ends"),
    [
        ("a", True, True),
        (" a", False, True),
        ("7", True, True),
        ("_x", True, True),
        ("'s", True, True),
        ("’re", True, True),
        ("'", True, True),
        (" '", False, False),
        ("x'", True, True),
        ("'(", False, False),
        (".", False, False),
        ("a.", True, False),
        ("\n", False, False),
        ("", False, False),
        ("é", True, True),
        ("\u0301", True, True),  # an accent alone
        ("한", True, True),  # Korean has spaces
        ("中", False, False),
        ("か", False, False),
        ("ท", False, False),
        ("😀", False, False),
        (b"\xc3", True, False),  # the first half of é
        (b"\xa9", True, False),  # its second
        (b"\xe4\xbd", False, False),  # two thirds of 你
        (b"\xe4", False, False),
        (b"\xed", True, False),  # of a Korean syllable
        (b"\xf0\x9f", False, False),  # of a face
        (b"\xf0", False, False),
        (b" \xc3", False, False),
        (b"\xff", False, False),
    ],
)
def test_the_rule_on_pieces(piece, continues, ends):
    data = piece.encode() if isinstance(piece, str) else piece
    assert continues_word(data) == continues
    assert ends_in_word(data) == ends


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["special_tokens=bert", "vocab_size=260"], r"expected 261 or more \(256 bytes and the"),
        (["kind=char", "special_tokens=bert", "vocab_size=5"], "greater than or equal to 8"),
        (["kind=wordpiece", "special_tokens=gpt"], "wordpiece has BERT's; write auto or bert"),
        (["extra_tokens=[fim]"], "'fim': expected <…> or"),
        (["extra_tokens=['<a b>']"], "'<a b>': expected <…> or"),
        (["extra_tokens=['<|>']"], r"extra_tokens\[0\]: '<|>': expected"),
        (["extra_tokens=['<|x|>','<|x|>']"], r"extra_tokens\[1\]: '<\|x\|>': is there already"),
        (["extra_tokens=['<|endoftext|>']"], r"'<\|endoftext\|>': is there already"),
        (
            ["kind=char", "extra_tokens=['<a>','<b>','<c>','<d>','<e>','<f>']", "vocab_size=8"],
            "9 or",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, overrides, message):
    path = write_jsonl(tmp_path / "x.jsonl", ["text"])
    base = [f"input.paths={path}", f"output={tmp_path}/out"]
    with pytest.raises(ConfigError, match=message):
        load(DataPrepConfig, None, base + [f"tokenizer.train.{o}" for o in overrides], check)


def test_the_plan_names_special_tokens_only_where_they_were_chosen(tmp_path, run):
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    plain = run(path, "plain").plan
    assert "specials" not in plain["tokenizer"]["train"]
    train = {"tokenizer__train__extra_tokens": list(FIM)}
    made = run(path, "extra", tokenizer__train__special_tokens="gpt", **train)
    assert made.plan["tokenizer"]["train"]["specials"] == ["<|endoftext|>", *FIM]
    run(path, "plain", tokenizer__train__special_tokens="gpt")  # as auto is
    with pytest.raises(UserError, match=r"tokenizer\.train\.specials was absent"):
        run(path, "plain", tokenizer__train__special_tokens="bert")


def test_a_given_tokenizers_roles_are_part_of_the_plan(tmp_path, run):
    given = tmp_path / "given"
    trained(given, "bpe", special_tokens="bert", vocab_size=300)
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    run(path, tokenizer__path=str(given))
    settings = orjson.loads((given / CONFIG_FILE).read_bytes())
    (given / CONFIG_FILE).write_bytes(orjson.dumps(settings | {"mask_token": "[UNK]"}))
    with pytest.raises(UserError, match=r"tokenizer\.config_sha256 was"):
        run(path, tokenizer__path=str(given))
    (given / CONFIG_FILE).unlink()
    with pytest.raises(UserError, match=r"tokenizer\.config_sha256 was .*, now None"):
        run(path, tokenizer__path=str(given))


@pytest.mark.parametrize("content", ["[]", '"x"', "null"])
def test_settings_that_are_no_object_are_named(tmp_path, content):
    trained(tmp_path, "bpe", vocab_size=300)
    (tmp_path / CONFIG_FILE).write_text(content)
    for reader in (DocumentTokenizer, SpecialTokens):
        with pytest.raises(UserError, match=r"tokenizer_config\.json: expected a JSON object, got"):
            reader(tmp_path)
