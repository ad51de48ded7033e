import struct
from pathlib import Path

import numpy as np
import pytest

from data_prep.indexed import ShardReader, ShardWriter, dtype_for
from runtime.errors import UserError


def independent(documents: list[list[int]], code: int, element: str) -> tuple[bytes, bytes]:
    """The layout written from its description, sharing no code with the writer under test."""
    size = {8: 2, 4: 4}[code]
    token_bytes = b"".join(struct.pack("<" + element, t) for d in documents for t in d)
    index = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + bytes([code])
    index += len(documents).to_bytes(8, "little") + (len(documents) + 1).to_bytes(8, "little")
    for document in documents:
        index += struct.pack("<i", len(document))
    at = 0
    for document in documents:
        index += struct.pack("<q", at)
        at += size * len(document)
    for boundary in range(len(documents) + 1):
        index += struct.pack("<q", boundary)
    return token_bytes, index


def write(directory: Path, documents: list[list[int]], vocab_size: int):
    with ShardWriter(directory, "train_00000", "train", vocab_size) as writer:
        for document in documents:
            writer.add(np.array(document, dtype=np.int32))
        return writer.finish()


@pytest.mark.parametrize(
    ("vocab_size", "code", "element"),
    [(300, 8, "H"), (65499, 8, "H"), (65500, 4, "i"), (65536, 4, "i"), (65537, 4, "i")],
)
def test_files_are_megatrons_byte_for_byte(tmp_path, vocab_size, code, element):
    documents = [[1, 2, 3], [0], [vocab_size - 1] * 7, [5, vocab_size - 2]]
    entry = write(tmp_path, documents, vocab_size)
    token_bytes, index = independent(documents, code, element)
    assert (tmp_path / "train_00000.bin").read_bytes() == token_bytes
    assert (tmp_path / "train_00000.idx").read_bytes() == index
    assert len(index) == 42 + 20 * len(documents)
    assert (entry.documents, entry.tokens, entry.bytes) == (4, 13, len(token_bytes))
    reader = ShardReader(tmp_path / "train_00000")
    assert [reader[i].tolist() for i in range(len(reader))] == documents
    assert reader.dtype == np.dtype(dtype_for(vocab_size))


def test_a_multimodal_index_and_sentences_are_read(tmp_path):
    token_bytes, index = independent([[1, 2], [3], [4, 5]], 8, "H")
    # documents of 2 and 1 sentences: boundaries 0, 2, 3; then one modality byte a sentence
    index = index[:26] + (3).to_bytes(8, "little") + index[34 : 34 + 36]
    index += struct.pack("<3q", 0, 2, 3) + b"\0\0\0"
    (tmp_path / "x.bin").write_bytes(token_bytes)
    (tmp_path / "x.idx").write_bytes(index)
    reader = ShardReader(tmp_path / "x")
    assert [reader[i].tolist() for i in range(len(reader))] == [[1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"X", "magic"),
        (9, b"\x02", "version 2"),
        (17, b"\x06", "dtype code 6"),
        (18, b"\x09", "header says"),
        (34, struct.pack("<i", -3), "negative length"),
        (34, struct.pack("<i", 2), "sums of the lengths"),
        (34 + 8 + 8, struct.pack("<q", 4), "sums of the lengths"),
        (34 + 24, struct.pack("<q", 1), "span 0 to 2"),
        (34 + 24 + 16, struct.pack("<q", 3), "span 0 to 2"),
        (34 + 24 + 8, struct.pack("<q", 9), "out of order"),
    ],
)
def test_a_damaged_index_is_refused_by_name(tmp_path, at, value, message):
    write(tmp_path, [[1, 2, 3], [4]], 300)
    path = tmp_path / "train_00000.idx"
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        ShardReader(tmp_path / "train_00000")
    assert "train_00000.idx" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 20, 50])
def test_a_cut_index_is_refused(tmp_path, keep):
    write(tmp_path, [[1, 2, 3], [4]], 300)
    path = tmp_path / "train_00000.idx"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"train_00000\.idx"):
        ShardReader(tmp_path / "train_00000")


def test_a_short_token_file_is_refused(tmp_path):
    write(tmp_path, [[1, 2, 3], [4]], 300)
    path = tmp_path / "train_00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"has 6 bytes, its index says 8"):
        ShardReader(tmp_path / "train_00000")


def test_an_unfinished_shard_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="outside"):
        write(tmp_path, [[1, 2], [300]], 300)
    assert list(tmp_path.iterdir()) == []
