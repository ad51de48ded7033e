import random
from pathlib import Path

import numpy as np
import orjson
import pytest

from data_prep import Loader, Shards, manifest
from data_prep.indexed import ShardReader, ShardWriter
from data_prep.samples import Layout
from data_prep.sentences import sentences
from data_prep.tokenizer import DocumentTokenizer
from data_prep.verify import verify_directory
from runtime.errors import UserError
from tests.data_prep.samples import contents, make_texts, write_jsonl

TEXTS = [
    "Dr. Smith met Mrs. Jones at 5 p.m. on Jan. 5. They paid $3.14 each! No. 7 was free. Yes.",
    "他说：“我走了。”然后，他走了！是吗？是的……好，再见。\n\n第二段。",
    "# A Title\nSome words wrap\nhere. Then an end.\n\n- one item\n- another\n\nThe\tlast\n",
    "Hello  there. \n Next?  Yes.",
    "no end",
    "  \n lead. Then",
    "\x07\n\nHi.\n\n\x07\n\nThere.\n\n\x07",  # WordPiece has no token for the bell
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", " Two!", " Three?", " Four"]),
        ('He said "Go." She went. (Yes.) 5 men.', 4),
        ("Mr. J. R. Smith vs. the U.S. Army, e.g. Fort St. Ives.", 1),
        (
            "At 3.14 and 2,000. and lower case. 99 more",
            ["At 3.14 and 2,000. and lower case.", None],
        ),
        (
            "See Fig. 3 and pp. 7. I said no. Then",
            ["See Fig. 3 and pp. 7.", " I said no.", " Then"],
        ),
        ("Wait... What?! Really", ["Wait...", " What?!", " Really"]),
        ("你好。“是吗？”他问！好", ["你好。", "“是吗？”", "他问！", "好"]),
        ("「はい。」と、言った｡ええ", ["「はい。」", "と、言った｡", "ええ"]),
        ("他想……，算了。对吗?对!", ["他想……，算了。", "对吗?", "对!"]),
        ("A line\nwrapped\n\nA new one", ["A line\nwrapped\n\n", "A new one"]),
        ("# Head\nText\n- a\n* b\n1. C. D", ["# Head\n", "Text\n", "- a\n", "* b\n", "1. C. D"]),
        ("Title\n=====\nText", ["Title\n=====\n", "Text"]),
        ("1. First item. 2. Second", ["1. First item.", " 2. Second"]),
        ("\n\n Lead.\n", ["\n\n Lead.\n"]),
        ("   ", ["   "]),
        ("", [""]),
    ],
)
def test_rules(text, expected):
    found = sentences(text)
    if isinstance(expected, int):
        assert len(found) == expected
    else:
        assert len(found) == len(expected)
        assert all(want in (None, got) for want, got in zip(expected, found, strict=True))


def test_nothing_is_changed_and_no_sentence_is_blank():
    rng = random.Random(1)
    pieces = [
        *" \n\t.!?…。！？”』」\"')#-=1aAé你。",
        "\n\n",
        "e.g. ",
        "Mr. ",
        "\u3000",
        "- ",
        "x. Y",
    ]
    for _ in range(20_000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 25)))
        found = sentences(text)
        assert "".join(found) == text
        assert len(found) == 1 or all(sentence.strip() for sentence in found), text


@pytest.mark.parametrize(
    "text",
    [unit * 200_000 for unit in ("...", "。", "\n", "A. ", "!? ", "\n- ", "=", "。”", "a.'", " \n")]
    + [
        f"{start}{mark * 500_000}{end}"
        for start in "a\n好"
        for mark in ".。…! \n=#'"
        for end in "x，"
    ],
    ids=lambda text: repr(text[:3] + text[-3:]),
)
def test_long_runs_are_read_once(text):
    """A look at every rest of a run would take hours; the suite's timeout ends that."""
    assert "".join(sentences(text)) == text


def expected_ends(tokenizer, text):
    counts = [len(ids) for ids in tokenizer.encode(sentences(text))]
    ends = np.cumsum([count for count in counts if count])
    return [*ends[:-1].tolist(), int(ends[-1]) + 1]


@pytest.fixture
def texts():
    return [*TEXTS, *make_texts(120), "Ends. " * 30]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "char"])
def test_the_index_says_where_sentences_end(tmp_path, run, texts, kind):
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    train = {"tokenizer__train__kind": kind, "tokenizer__train__vocab_size": 400}
    made = run(path, input__sentences=True, **train)
    assert made.sentences
    assert made.plan["input"]["sentences"] is True
    shards = Shards(tmp_path / "out", verify=True)
    assert shards.has_sentences
    tokenizer = DocumentTokenizer(tmp_path / "out")
    for number, text in enumerate(texts):
        ends = shards.sentence_ends(number)
        assert ends.dtype == np.int64
        assert ends.tolist() == expected_ends(tokenizer, text)
        parts = tokenizer.encode(sentences(text))
        assert shards[number].tolist() == [*np.concatenate(parts), shards.eod_id]
    assert len(shards.sentence_ends(0)) == 4


def test_without_the_key_nothing_changes(tmp_path, run, texts):
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    run(path)
    shards = Shards(tmp_path / "out")
    assert not shards.has_sentences
    assert shards.sentence_ends(0).tolist() == []
    assert "sentences" not in shards.manifest.plan["input"]
    with pytest.raises(UserError, match=r"input\.sentences was absent, now True"):
        run(path, input__sentences=True)


def test_english_prose_has_the_same_tokens_with_and_without(tmp_path, run):
    """A byte-level word carries its space in front; so must a sentence."""
    words = ["The", "river", "Old", "stone", "sees"]
    rng = random.Random(2)
    made = ["So " + " ".join(rng.choice(words) for _ in range(9)) + "." for _ in range(200)]
    path = write_jsonl(
        tmp_path / "x.jsonl", [" ".join(made[at : at + 5]) for at in range(0, 200, 5)]
    )
    run(path, "plain")
    run(path, "cut", input__sentences=True)
    plain, cut = Shards(tmp_path / "plain"), Shards(tmp_path / "cut")
    assert all(np.array_equal(a, b) for a, b in zip(plain, cut, strict=True))
    assert {len(cut.sentence_ends(number)) for number in range(len(cut))} == {5}


def test_bytes_do_not_depend_on_workers(tmp_path, run, texts):
    path = write_jsonl(tmp_path / "x.jsonl", texts * 3)
    options = {"input__sentences": True, "split__valid": 0.2}
    run(path, "one", workers=1, **options)
    run(path, "two", workers=2, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(manifest.load(tmp_path / "one").shards) > 4


@pytest.mark.parametrize(
    "layout",
    [Layout("best_fit", 24, drops_eod=True), Layout("documents", 16, lookahead=1)],
    ids=str,
)
def test_segments_know_their_sentences(tmp_path, run, texts, layout):
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    run(path, input__sentences=True)
    loader = Loader([(tmp_path / "out", 1.0)], layout=layout, global_batch_size=1, collate=list)
    shards = loader.shards[0]
    stream = shards.read(0, shards.tokens)
    starts = np.cumsum([0, *(len(document) for document in shards)])
    all_ends = {
        int(start + end)
        for number, start in enumerate(starts[:-1])
        for end in shards.sentence_ends(number)
    }
    counted = 0
    for step in range(loader.samples_per_epoch):
        (sample,), seen = loader.samples(step), loader.documents(step)
        for segment, place in zip(sample.segments, seen, strict=True):
            first, count = place.tokens.start, len(segment.tokens)
            assert np.array_equal(stream[first : first + count], segment.tokens)
            inside = {at for at in range(first + 1, first + count) if at in all_ends}
            expected = sorted({at - first for at in inside} | {count})
            assert segment.sentence_ends.tolist() == expected
            counted += len(inside)
    assert counted > 50


def test_sentences_are_sequences_as_megatron_has_them(tmp_path):
    with ShardWriter(tmp_path, "train_00000", "train", 300) as writer:
        writer.add(np.array([5, 6, 7, 0]), np.array([2, 4]))
        writer.add(np.array([8, 0]), np.array([2]))
        entry = writer.finish()
    assert (entry.documents, entry.tokens) == (2, 6)
    index = (tmp_path / "train_00000.idx").read_bytes()
    assert int.from_bytes(index[18:26], "little") == 3
    assert int.from_bytes(index[26:34], "little") == 3
    assert np.frombuffer(index, "<i4", 3, 34).tolist() == [2, 2, 2]
    assert np.frombuffer(index, "<i8", 3, 46).tolist() == [0, 4, 8]
    assert np.frombuffer(index, "<i8", 3, 70).tolist() == [0, 2, 3]
    assert len(index) == 94
    reader = ShardReader(tmp_path / "train_00000")
    assert [reader.sequence_ends(number).tolist() for number in range(2)] == [[2, 4], [2]]


@pytest.mark.parametrize("ends", [[], [2], [0, 3], [3, 2], [2, 2, 3], [3, 4]])
def test_ends_that_do_not_fit_are_refused(tmp_path, ends):
    with (
        ShardWriter(tmp_path, "train_00000", "train", 300) as writer,
        pytest.raises(ValueError, match="do not rise to 3"),
    ):
        writer.add(np.array([5, 6, 0]), np.array(ends, dtype=np.int64))


@pytest.mark.parametrize("had", [True, False])
def test_verify_finds_a_manifest_that_is_wrong_about_sentences(tmp_path: Path, run, texts, had):
    run(write_jsonl(tmp_path / "x.jsonl", texts), input__sentences=True)
    path = tmp_path / "out" / "manifest.json"
    listed = orjson.loads(path.read_bytes())
    assert verify_directory(tmp_path / "out") == []
    path.write_bytes(orjson.dumps(listed | {"sentences": had}))
    problems = verify_directory(tmp_path / "out")
    assert bool(problems) is not had
    assert all("without a sentence index" in problem for problem in problems)
