"""Files of other programs: read in their dialect, imported, verified; also huge ones."""

import struct
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep import importing
from data_prep.indexed import ShardReader, ShardWriter
from data_prep.shards import Shards
from data_prep.tokenizer import FILE, DocumentTokenizer
from data_prep.tokenizer_config import TrainTokenizer
from data_prep.tokenizer_train import train
from data_prep.verify import verify_directory
from runtime.errors import UserError
from tests.data_prep.samples import contents, make_texts

CODES = {  # of each dialect, as its documentation lists them: struct letter by code
    "megatron": {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"},
    "neox": {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"},
    "deepspeed": {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 6: "H", 7: "I", 8: "Q"},
}


def write_foreign(prefix: Path, documents, code, letter, extra=b""):
    """A pair of files from the layout's description. documents: lists of sentences of ids."""
    sentences = [sentence for document in documents for sentence in document]
    size = struct.calcsize("<" + letter)
    data = b"".join(struct.pack("<" + letter, t) for sentence in sentences for t in sentence)
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sentences), len(documents) + 1)
    index += b"".join(struct.pack("<i", len(sentence)) for sentence in sentences)
    at, bounds = 0, [0]
    for sentence in sentences:
        index += struct.pack("<q", at)
        at += size * len(sentence)
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    index += struct.pack(f"<{len(bounds)}q", *bounds)
    prefix.with_suffix(".bin").write_bytes(data)
    prefix.with_suffix(".idx").write_bytes(index + extra)


def read_plainly(prefix: Path):
    """Documents of ids, read back with nothing but the layout's description."""
    index, data = prefix.with_suffix(".idx").read_bytes(), prefix.with_suffix(".bin").read_bytes()
    assert index[:9] == bytes.fromhex("4d4d49444944580000")
    version, code, count, bounds = struct.unpack_from("<QBQQ", index, 9)
    letter, size = {8: ("H", 2), 4: ("i", 4)}[code]
    assert (version, len(index)) == (1, 34 + 12 * count + 8 * bounds)
    lengths = struct.unpack_from(f"<{count}i", index, 34)
    offsets = struct.unpack_from(f"<{count}q", index, 34 + 4 * count)
    limits = struct.unpack_from(f"<{bounds}q", index, 34 + 12 * count)
    assert (limits[0], limits[-1]) == (0, count)
    assert [o // size for o in offsets] == [sum(lengths[:n]) for n in range(count)]
    assert len(data) == size * sum(lengths)
    rows = [
        struct.unpack_from(f"<{n}{letter}", data, o) for n, o in zip(lengths, offsets, strict=True)
    ]
    return [[list(row) for row in rows[a:b]] for a, b in pairwise(limits)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    train(TrainTokenizer(vocab_size=300), make_texts(100), directory)
    return directory


def run(tokenizer, output, *arguments):
    given = [*arguments, "--output", output, "--tokenizer", tokenizer]
    assert importing.main([str(a) for a in given]) == 0
    assert verify_directory(output) == []
    return Shards(output, "train")


@pytest.mark.parametrize("vocab_size", [65499, 65500, 65536, 65537])
@pytest.mark.parametrize("by_sentence", [False, True])
def test_an_independent_reader_finds_what_was_written(tmp_path, vocab_size, by_sentence):
    rng = np.random.default_rng(0)
    documents = [
        [rng.integers(0, vocab_size, size=n).tolist() for n in rng.integers(1, 9, size=3)]
        for _ in range(20)
    ]
    documents[3][0][0] = vocab_size - 1
    if not by_sentence:
        documents = [[[*chain(*document)]] for document in documents]
    with ShardWriter(tmp_path, "x", "train", vocab_size) as writer:
        for document in documents[:5]:
            ends = np.cumsum([len(s) for s in document])
            writer.add(np.array([*chain(*document)]), ends if by_sentence else None)
        rest = documents[5:]
        writer.add_many(
            np.array([t for d in rest for s in d for t in s]),
            np.array([sum(map(len, d)) for d in rest]),
            np.array([len(s) for d in rest for s in d]) if by_sentence else None,
            np.array([len(d) for d in rest]) if by_sentence else None,
        )
        writer.finish()
    assert read_plainly(tmp_path / "x") == documents
    assert (tmp_path / "x.idx").read_bytes()[17] == (8 if vocab_size == 65499 else 4)


@pytest.mark.parametrize("dialect", CODES)
def test_every_code_of_every_dialect(tmp_path, dialect):
    documents = [[[1, 2, 3]], [[5]], [[100, 7]]]
    for code in range(10):
        letter = CODES[dialect].get(code, "H")
        write_foreign(tmp_path / "x", documents, code, letter)
        if code not in CODES[dialect]:
            with pytest.raises(UserError, match=rf"x\.idx: has the .*dtype code {code}"):
                ShardReader(tmp_path / "x", dialect)
            continue
        reader = ShardReader(tmp_path / "x", dialect)
        assert [reader[n].tolist() for n in range(3)] == [[1, 2, 3], [5], [100, 7]]
    write_foreign(tmp_path / "x", documents, 6, "d")
    names = {"megatron": "float64", "neox": "float32"}
    if dialect in names:
        with pytest.raises(UserError, match=f"{names[dialect]} in {dialect}'s files .* deepspeed"):
            ShardReader(tmp_path / "x", dialect)


def test_offsets_beyond_two_gib(tmp_path):
    """2³¹ bytes and more: a .bin file without blocks, its index written from the description."""
    lengths = [2**29, 2**29 + 5, 7]  # four bytes each
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, 3, 4) + struct.pack("<3i", *lengths)
    offsets = [0, 4 * lengths[0], 4 * sum(lengths[:2])]
    assert offsets[2] > 2**32
    index += struct.pack("<3q", *offsets) + struct.pack("<4q", 0, 1, 2, 3)
    (tmp_path / "x.idx").write_bytes(index)
    with (tmp_path / "x.bin").open("wb") as stream:
        stream.truncate(4 * sum(lengths))
        for offset, token in zip([*offsets[1:], 4 * sum(lengths)], (11, 12, 13), strict=True):
            stream.seek(offset - 4)
            stream.write(struct.pack("<i", token))
    reader = ShardReader(tmp_path / "x")
    assert [len(reader[n]) for n in range(3)] == lengths
    assert [int(reader[n][-1]) for n in range(3)] == [11, 12, 13]
    assert int(reader[1][0]) == 0


def test_files_of_our_form_are_linked(tmp_path, tokenizer):
    eod = DocumentTokenizer(tokenizer).eod_id
    documents = [[[5, 6, eod]], [[7, eod]]]
    write_foreign(tmp_path / "a", documents, 8, "H")
    write_foreign(tmp_path / "b", documents[:1], 8, "H")
    shards = run(tokenizer, tmp_path / "out", tmp_path / "a.bin", tmp_path / "b")
    assert [shards[n].tolist() for n in range(3)] == [[5, 6, eod], [7, eod], [5, 6, eod]]
    for end in (".bin", ".idx"):
        assert (tmp_path / f"out/train_00000{end}").samefile(tmp_path / f"a{end}")
    before = contents(tmp_path / "out")
    run(tokenizer, tmp_path / "out", tmp_path / "a.bin", tmp_path / "b")  # is there already
    assert contents(tmp_path / "out") == before
    with pytest.raises(UserError, match="was made from another plan"):
        run(tokenizer, tmp_path / "out", tmp_path / "a.bin")


def test_what_follows_the_index_is_left_out(tmp_path, tokenizer):
    eod = DocumentTokenizer(tokenizer).eod_id
    documents = [[[5, 6, eod]], [[7, eod]]]
    write_foreign(tmp_path / "x", documents, 8, "H", b"\0\0")  # kinds of multimodal data
    run(tokenizer, tmp_path / "out", tmp_path / "x")
    assert read_plainly(tmp_path / "out" / "train_00000") == documents


@pytest.mark.parametrize(
    ("dialect", "code", "letter"),
    [("megatron", 4, "i"), ("neox", 5, "q"), ("deepspeed", 8, "Q"), ("deepspeed", 6, "H")],
)
def test_other_forms_are_converted(tmp_path, tokenizer, monkeypatch, dialect, code, letter):
    monkeypatch.setattr(importing, "_GROUP_TOKENS", 8)
    rng = np.random.default_rng(0)
    sentences = [[rng.integers(1, 300, size=n).tolist() for n in (3, 2, 9)] for _ in range(20)]
    eod = DocumentTokenizer(tokenizer).eod_id
    for document in sentences[::2]:
        document[-1][-1] = eod
    documents = [*sentences[:7], [[]], *sentences[7:], []]
    write_foreign(tmp_path / "x", documents, code, letter, b"\0" * 61 if code == 8 else b"")
    arguments = (tmp_path / "x", "--dialect", dialect)
    with pytest.raises(UserError, match=r"x\.bin: 10 of 22 documents do not end with <\|endof"):
        run(tokenizer, tmp_path / "out", *arguments)
    shards = run(tokenizer, tmp_path / "out", *arguments, "--append-eod")
    ended = [d if d[-1][-1] == eod else [*d[:-1], [*d[-1], eod]] for d in sentences]
    assert read_plainly(tmp_path / "out" / "train_00000") == ended
    assert [shards[n].tolist() for n in range(20)] == [[*chain(*d)] for d in ended]


def test_what_the_manifest_says(tmp_path, tokenizer):
    own = DocumentTokenizer(tokenizer)
    texts = make_texts(20)
    rows = [[*ids.tolist(), own.eod_id] for ids in own.encode(texts)]
    write_foreign(tmp_path / "x", [[row] for row in [*rows, []]], 4, "i")
    run(tokenizer, tmp_path / "out", tmp_path / "x")
    listed = importing.manifest.load(tmp_path / "out")
    counts = listed.splits["train"]
    assert (counts.documents, counts.tokens) == (20, sum(map(len, rows)))
    assert counts.text_bytes == sum(len(text.encode()) for text in texts)
    assert listed.dropped == {"no_tokens": 1}
    assert not listed.sentences
    for source, end in zip(listed.sources, (".bin", ".idx"), strict=True):
        path = tmp_path / f"x{end}"
        assert (source.path, source.bytes) == (str(path), path.stat().st_size)
        assert source.sha256 == importing.file_sha256(path)
    (tmp_path / "x.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:-4] + struct.pack("<i", 5))
    with pytest.raises(UserError, match=r"the content of .*x\.bin changed"):
        run(tokenizer, tmp_path / "out", tmp_path / "x")


def test_mistakes_are_named(tmp_path, tokenizer):
    write_foreign(tmp_path / "x", [[[1, 300]]], 8, "H")
    with pytest.raises(UserError, match=r"holds ids from 1 to 300, the tokenizer has 300"):
        run(tokenizer, tmp_path / "out", tmp_path / "x", "--append_eod")
    with pytest.raises(UserError, match=r"nothing\.idx: cannot be read"):
        run(tokenizer, tmp_path / "new", tmp_path / "nothing")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=r"--tokenizer: .* is no tokenizer\.json"):
        run(tmp_path, tmp_path / "new", tmp_path / "x")
    with pytest.raises(UserError, match=r"invalid choice: 'numpy'"):
        run(tokenizer, tmp_path / "new", tmp_path / "x", "--dialect", "numpy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / FILE).write_text("{}")
    with pytest.raises(UserError, match=r"holds other files \(such as tokenizer\.json\)"):
        run(tokenizer, tmp_path / "full", tmp_path / "x", "--append_eod")


def test_another_disk_gets_a_copy(tmp_path, tokenizer, monkeypatch):
    eod = DocumentTokenizer(tokenizer).eod_id
    write_foreign(tmp_path / "x", [[[5, eod]]], 8, "H")

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(importing.os, "link", refuse)
    run(tokenizer, tmp_path / "out", tmp_path / "x")
    copy = tmp_path / "out" / "train_00000.bin"
    assert copy.read_bytes() == (tmp_path / "x.bin").read_bytes()
    assert not copy.samefile(tmp_path / "x.bin")


@pytest.mark.parametrize("is_damaged", [False, True])
def test_an_import_that_was_killed_is_verified_before_it_counts(tmp_path, tokenizer, is_damaged):
    eod = DocumentTokenizer(tokenizer).eod_id
    write_foreign(tmp_path / "x", [[[5, 6, eod]]], 8, "H")
    arguments = (tmp_path / "x", "--copy")
    run(tokenizer, tmp_path / "out", *arguments)
    before, mark = contents(tmp_path / "out"), tmp_path / "out" / ".import.json"
    mark.write_text("{}")  # killed just before its end
    path = tmp_path / "out" / "train_00000.bin"
    if is_damaged:
        path.write_bytes(b"\7" + path.read_bytes()[1:])
    made = path.stat().st_mtime_ns
    run(tokenizer, tmp_path / "out", *arguments)
    assert contents(tmp_path / "out") == before
    assert not mark.exists()
    assert (path.stat().st_mtime_ns == made) == (not is_damaged)


def test_hard_links_are_told_and_copies_can_be_had(tmp_path, tokenizer, capsys):
    eod = DocumentTokenizer(tokenizer).eod_id
    write_foreign(tmp_path / "x", [[[5, 6, eod]]], 8, "H")
    run(tokenizer, tmp_path / "out", tmp_path / "x")
    assert "2 files are hard links of the originals" in capsys.readouterr().out
    before = contents(tmp_path / "out")
    for output in ("new", "out"):  # from the start, and of links that are there
        run(tokenizer, tmp_path / output, tmp_path / "x", "--copy")
        assert "hard links" not in capsys.readouterr().out
    assert contents(tmp_path / "out") == before
    with (tmp_path / "x.bin").open("rb+") as stream:
        stream.write(b"\7")
    assert verify_directory(tmp_path / "out") == []
    assert verify_directory(tmp_path / "new") == []
