import bz2
import gzip
import lzma
import tracemalloc

import orjson
import pytest
import zstandard

from data_prep import unpacking
from runtime.errors import UserError
from tests.data_prep.readers.reading import read_all, texts
from tests.data_prep.samples import make_texts

PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_content_size=False).compress,
}


def jsonl(wanted):
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in wanted)


@pytest.mark.parametrize("kind", PACK)
def test_frames_one_after_another_are_one_file(tmp_path, kind):
    wanted = make_texts(3000)
    data = jsonl(wanted)
    frames = [data[:100], b"", data[100:5000], data[5000:]]  # cut inside records
    path = tmp_path / f"x.jsonl.{kind}"
    path.write_bytes(b"".join(PACK[kind](frame) for frame in frames))
    assert texts(read_all(path)) == wanted


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path, kind, keep):
    whole = PACK[kind](jsonl(make_texts(500)))
    path = tmp_path / f"x.jsonl.{kind}"
    path.write_bytes(whole + whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=rf"x\.jsonl\.{kind}: the \w+ file is cut off or damaged"):
        read_all(path)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("place", [0, 1])
def test_other_bytes_are_no_end_of_a_file(tmp_path, kind, place):
    path = tmp_path / f"x.jsonl.{kind}"
    parts = [PACK[kind](jsonl(make_texts(20))), b"garbage, and more of it than a header has"]
    path.write_bytes(b"".join(parts[::-1] if place == 0 else parts))
    with pytest.raises(UserError, match="cut off or damaged"):
        read_all(path)


@pytest.mark.parametrize("kind", ["gz", "xz", "zst", "bz2"])
def test_a_bomb_fails_in_one_line_and_in_little_memory(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(unpacking, "RATIO_FLOOR_BYTES", 4 << 20)
    path = tmp_path / f"bomb.txt.{kind}"
    path.write_bytes(PACK[kind](b"a" * (96 << 20 if kind == "zst" else 8 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as told:
            read_all(path, document="line", max_unpack_ratio=500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"bomb.txt.{kind}: " in str(told.value)
    assert "beyond max_unpack_ratio 500" in str(told.value)
    assert "\n" not in str(told.value)
    # zstandard gives up to 32 MiB in one step, whatever it is asked for.
    assert peak < (80 << 20 if kind == "zst" else 16 << 20)


def test_text_that_packs_well_is_no_bomb(tmp_path):
    path = tmp_path / "x.txt.xz"
    path.write_bytes(lzma.compress(b"the same line\n" * 100_000))  # 1.4 MB in 400 bytes
    assert len(texts(read_all(path, document="line"))) == 100_000
