"""sentencepiece's models as tokenizer.json, against sentencepiece itself."""

import io
import struct
import subprocess
import sys

import numpy as np
import orjson
import pytest

from data_prep import tokenizer_sentencepiece
from data_prep.config import DataPrepConfig, check
from data_prep.sentencepiece_model import parse
from data_prep.shards import Shards
from data_prep.tokenizer import CONFIG_FILE, FILE, DocumentTokenizer, SpecialTokens
from data_prep.tokenizer_config import BERT_SPECIALS, TokenizerChoice, TrainTokenizer
from data_prep.tokenizer_load import identity, place
from data_prep.tokenizer_train import train
from runtime.config import ConfigError, load
from runtime.errors import UserError
from tests.architecture.source import ROOT
from tests.data_prep.samples import make_texts, write_jsonl
from tests.processes import environment

sentencepiece = pytest.importorskip("sentencepiece")

TEXTS = make_texts(300)
LINES = [line for text in TEXTS for line in text.split("\n") if line]
HARD = [
    "",
    " ",
    "  two  spaces  ",
    "tab\tnew\n\nlines\n",
    "你好，世界！龘",
    "😀👩‍👩‍👧 ﬁ ½ Ａ",
    "<s> </s> <unk> <0x41> <pad>",
    "x▁y ▁ ▁▁",
    "The RIVER sees",
]


def model(**options):
    written = io.BytesIO()
    settings = {"vocab_size": 400, "model_type": "unigram", "hard_vocab_limit": False} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=written,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    return written.getvalue()


def placed(directory, data, name="x.model", **choice):
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(data)
    out = directory / "out"
    out.mkdir()
    place(TokenizerChoice(path=str(directory / name), **choice), out)
    return out


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("removes_spaces", [True, False])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc", "nmt_nfkc_cf"])
def test_a_model_gives_sentencepieces_ids(tmp_path, kind, byte_fallback, removes_spaces, rule):
    data = model(
        model_type=kind,
        byte_fallback=byte_fallback,
        remove_extra_whitespaces=removes_spaces,
        normalization_rule_name=rule,
        pad_id=3,
    )
    directory = placed(tmp_path / "m", data)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = DocumentTokenizer(directory)
    assert (tokenizer.eod, tokenizer.eod_id) == ("</s>", theirs.eos_id())
    assert tokenizer.vocab_size == theirs.vocab_size()
    special = {theirs.bos_id(), theirs.eos_id(), theirs.pad_id()}
    for text in HARD + TEXTS:
        (ids,) = tokenizer.encode([text])
        if not text.startswith("<s>") or byte_fallback or kind == "bpe":
            assert ids.tolist() == theirs.encode(text), text  # else the unknown are counted singly
        assert not special & set(ids.tolist())
        if rule == "identity" and byte_fallback and not removes_spaces and "▁" not in text:
            assert tokenizer.decode(ids) == text
    assert SpecialTokens(directory).roles["pad"] == 3


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_symbols_that_are_never_cut(tmp_path, kind):
    options = {"user_defined_symbols": ["<sep>", "under-over", "river"], "byte_fallback": True}
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    data = model(model_type=kind, add_dummy_prefix=kind == "unigram", **options, **plain)
    tokenizer = DocumentTokenizer(placed(tmp_path / "m", data))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    symbol = theirs.piece_to_id("<sep>")
    for text in ("a<sep>b", " <sep>  under-over-under <sep><sep>", *HARD):
        (ids,) = tokenizer.encode([text])
        assert ids.tolist() == theirs.encode(text)
    assert tokenizer.encode(["the <sep>river<sep>"])[0].tolist().count(symbol) == 2


def test_a_model_that_cannot_be_equal_is_refused(tmp_path):
    data = model(model_type="bpe", user_defined_symbols=["<sep>"])  # with a space before the text
    with pytest.raises(UserError, match=r"x\.model: as a tokenizer\.json it would encode 'a <sep>"):
        placed(tmp_path / "m", data)


def test_bytes_that_are_no_model_are_named(tmp_path):
    good = model(model_type="bpe")
    for number, bad in enumerate((b"", b"hello world", good[: len(good) // 2], b"\x0a\xff")):
        with pytest.raises(UserError, match=r"x\.model: not a sentencepiece model"):
            placed(tmp_path / str(number), bad)
    with pytest.raises(UserError, match="is a word or character model"):
        placed(tmp_path / "char", model(model_type="char"))
    with pytest.raises(UserError, match="marks spaces after words"):
        placed(tmp_path / "suffix", model(treat_whitespace_as_suffix=True))


def test_the_settings_of_a_model(tmp_path):
    read = parse(model(byte_fallback=True, bos_id=-1, pad_id=0, unk_id=1), tmp_path)
    assert (read.bos_id, read.eos_id, read.pad_id, read.unknown_id) == (-1, 2, 0, 1)
    assert (read.adds_prefix, read.removes_spaces, read.byte_fallback) == (True, True, True)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model(byte_fallback=True))
    read = parse(model(byte_fallback=True), tmp_path)
    assert [p.text for p in read.pieces] == [theirs.id_to_piece(n) for n in range(len(theirs))]
    scores = [
        struct.unpack("f", struct.pack("f", theirs.get_score(n)))[0] for n in range(len(theirs))
    ]
    assert [p.score for p in read.pieces] == scores


def test_the_end_of_a_model_without_one_must_be_named(tmp_path):
    data = model(eos_id=-1, control_symbols=["<end>"])
    with pytest.raises(UserError, match=r"no end-of-text token found; set tokenizer\.eod"):
        placed(tmp_path / "a", data)
    directory = placed(tmp_path / "b", data, eod="<end>")
    assert DocumentTokenizer(directory).eod == "<end>"


def test_a_folder_with_a_model(tmp_path):
    placed(tmp_path / "a", model(), name="spiece.model")
    choice = TokenizerChoice(path=str(tmp_path / "a"))
    assert list(identity(choice)) == ["sha256", "config_sha256", "eod"]
    (tmp_path / "b").mkdir()
    place(choice, tmp_path / "b")
    for name in (FILE, CONFIG_FILE):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a/out" / name).read_bytes()


def test_without_the_package_a_model_is_refused(tmp_path, monkeypatch):
    data = model()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"need sentencepiece; pip install 'ingot\[data\]'"):
        placed(tmp_path / "m", data)


@pytest.mark.parametrize(
    ("kind", "special"), [("unigram", "gpt"), ("unigram", "bert"), ("bpe", "gpt"), ("bpe", "bert")]
)
def test_training(tmp_path, kind, special):
    transformers = pytest.importorskip("transformers")
    options = TrainTokenizer(
        kind=kind,
        engine="sentencepiece",
        vocab_size=500,
        special_tokens=special,
        extra_tokens=("<|fim|>",),
    )
    train(options, TEXTS, tmp_path)
    tokenizer = DocumentTokenizer(tmp_path)
    first = BERT_SPECIALS if special == "bert" else ("<|endoftext|>", "<unk>")
    names = [tokenizer._tokenizer.id_to_token(n) for n in range(len(first) + 1)]
    assert names == [*first, "<|fim|>"]
    assert tokenizer.eod == ("[SEP]" if special == "bert" else "<|endoftext|>")
    special_ids = SpecialTokens(tmp_path).special_ids
    assert special_ids == set(range(len(names)))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ["a" * 3000, *TEXTS[:50], *HARD, *(f"the {t} river{t}" for t in names)]:
        (ids,) = tokenizer.encode([text])
        assert not set(ids.tolist()) & special_ids
        if "▁" not in text:
            assert tokenizer.decode(ids) == text  # nothing is lost: other characters are bytes
        if not any(name in text for name in names):
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids.tolist()
    assert len(theirs) == tokenizer.vocab_size <= 500
    if special == "bert":
        assert theirs("the river")["input_ids"][0] == 2


def test_training_gives_the_same_bytes_in_every_process(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from data_prep.tokenizer_train import train\n"
        "from data_prep.tokenizer_config import TrainTokenizer\n"
        "from tests.data_prep.samples import make_texts\n"
        "for kind in ('unigram', 'bpe'):\n"
        "    path = Path(sys.argv[1]) / kind; path.mkdir(parents=True)\n"
        "    options = TrainTokenizer(kind=kind, engine='sentencepiece', vocab_size=500)\n"
        "    train(options, make_texts(200), path)\n"
    )
    made = set()
    for seed in ("0", "1"):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, str(out)],
            env=environment() | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            timeout=60,
        )
        made.add(tuple((out / kind / FILE).read_bytes() for kind in ("unigram", "bpe")))
    assert len(made) == 1


def test_no_line_is_too_long_to_be_learnt_from():
    text = "x" * 5000 + "\n" + "龘" * 3000 + "\0"
    lines = list(tokenizer_sentencepiece._lines([text]))
    assert "".join(lines) == text.replace("\n", "").replace("\0", "")
    assert max(len(line.encode()) for line in lines) < tokenizer_sentencepiece._LINE_BYTES


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["kind=unigram", "engine=tokenizers"], "another Unigram vocabulary each time"),
        (["kind=char", "engine=sentencepiece"], "sentencepiece trains no char"),
        (["kind=unigram", "vocab_size=257"], r"expected 258 or more \(256 bytes and the special"),
    ],
)
def test_mistakes_are_named(tmp_path, overrides, message):
    path = write_jsonl(tmp_path / "x.jsonl", ["text"])
    base = [f"input.paths={path}", f"output={tmp_path}/out"]
    with pytest.raises(ConfigError, match=message):
        load(DataPrepConfig, None, base + [f"tokenizer.train.{o}" for o in overrides], check)


def test_a_vocabulary_that_is_too_small_is_an_error(tmp_path):
    with pytest.raises(UserError, match="sentencepiece cannot train: Vocabulary size is smaller"):
        train(TrainTokenizer(kind="unigram", vocab_size=260), TEXTS, tmp_path)


def test_plans_from_before_there_was_an_engine_still_hold(tmp_path, run):
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    assert "engine" not in run(path, "plain").plan["tokenizer"]["train"]
    made = run(path, "unigram", tokenizer__train__kind="unigram", tokenizer__train__vocab_size=500)
    assert "engine" not in made.plan["tokenizer"]["train"]
    assert np.all([counts.unknown_tokens == 0 for counts in made.splits.values()])
    other = {"tokenizer__train__engine": "sentencepiece", "tokenizer__train__vocab_size": 500}
    assert run(path, "bpe", **other).plan["tokenizer"]["train"]["engine"] == "sentencepiece"
    assert orjson.loads((tmp_path / "bpe" / FILE).read_bytes())["model"]["byte_fallback"]


def test_a_run_with_a_model(tmp_path, run):
    """From raw text to shards with a .model: sentencepiece's ids, and its </s> at the end."""
    data = model(byte_fallback=True)
    (tmp_path / "x.model").write_bytes(data)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS[:20])
    made = run(path, "out", tokenizer__path=str(tmp_path / "x.model"))
    assert (made.tokenizer.eod, made.tokenizer.vocab_size) == ("</s>", theirs.vocab_size())
    shards = Shards(tmp_path / "out", "train")
    expected = [[*theirs.encode(text), theirs.eos_id()] for text in TEXTS[:20]]
    assert sorted(shards[n].tolist() for n in range(20)) == sorted(expected)
    (tmp_path / "x.model").write_bytes(model(byte_fallback=False))
    with pytest.raises(UserError, match=r"tokenizer\.sha256 was"):
        run(path, "out", tokenizer__path=str(tmp_path / "x.model"))
