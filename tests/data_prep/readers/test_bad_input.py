"""Encodings, long lines and other input that must neither stop a run silently nor bloat it."""

import tracemalloc

import orjson
import pytest

from data_prep.config import DataPrepConfig, check
from data_prep.input_config import Input
from runtime.config import load
from runtime.errors import UserError
from tests.data_prep.readers.reading import read_all, reasons, texts


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.csv"])
@pytest.mark.parametrize("options", [{}, {"document": "file"}])
def test_a_line_beyond_the_limit_is_never_held(tmp_path, name, options):
    """64 MiB in one line, mostly a hole of the file: beyond a limit of 1 MiB it costs no memory."""
    path = tmp_path / name
    with path.open("wb") as stream:
        stream.write({"x.csv": b"text\n"}.get(name, b'{"text": "good"}\n'))
        stream.write(b"long ")
        stream.truncate(64 << 20)
        stream.seek(0, 2)
        stream.write(b'\n{"text": "good"}\n' if name != "x.csv" else b"\ngood\n")
    tracemalloc.start()
    try:
        records = read_all(path, **{"max_record_bytes": 1 << 20, "document": "line", **options})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    if options and name == "x.txt":
        assert reasons(records) == [(1, "too_long")]
    else:
        assert reasons(records) == [(2, "too_long")]
        assert len(texts(records)) == (1 if name == "x.csv" else 2)
        assert len(records[-2].excerpt) <= 160


def test_a_paragraph_beyond_the_limit(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\n\n" + b"line\n" * 1000 + b"\nthree\n")
    records = read_all(path, document="paragraph", max_record_bytes=100)
    assert texts(records) == ["one", "three"]
    assert reasons(records) == [(3, "too_long")]


def test_a_record_of_just_the_limit_is_read(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"12345\n123456\n12345")
    records = read_all(path, document="line", max_record_bytes=5)
    assert texts(records) == ["12345", "12345"]
    assert reasons(records) == [(2, "too_long")]


@pytest.mark.parametrize("codec", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.csv"])
def test_wide_encodings_are_told_with_the_mend(tmp_path, codec, name):
    path = tmp_path / name
    path.write_text('{"text": "a"}\n', encoding=codec)
    with pytest.raises(UserError, match=rf"{name}: is {codec.upper()} .*iconv -f {codec.upper()}"):
        read_all(path)


@pytest.mark.parametrize("codec", ["gb18030", "big5", "shift_jis", "cp1252"])
def test_files_in_other_encodings(tmp_path, codec):
    word = "naïve café" if codec == "cp1252" else "中文字，一" if codec != "shift_jis" else "日本語"
    bad = {"gb18030": b"\xff", "big5": b"\xff", "shift_jis": b"\xfd", "cp1252": b"\x81"}[codec]
    line, plain = f'{{"text": "{word}"}}\n'.encode(codec), f"{word}\n".encode(codec)
    (tmp_path / "x.jsonl").write_bytes(line + b'{"text": "' + bad + b'"}\n' + line)
    (tmp_path / "x.txt").write_bytes(plain + bad + b"\n" + plain)
    (tmp_path / "x.csv").write_bytes(b"text\n" + plain + bad + b"\n" + plain)
    for name in ("x.jsonl", "x.txt", "x.csv"):
        records = read_all(tmp_path / name, encoding=codec, document="line")
        assert texts(records) == [word, word]
        assert [reason for _, reason in reasons(records)] == ["invalid_encoding"]


@pytest.mark.parametrize("codec", ["utf-16", "utf-7", "hex", "nonsense", "cp037", "iso2022_jp"])
def test_codecs_that_are_refused_at_once(codec):
    with pytest.raises(ValueError, match=r"encoding|line by line"):
        Input(paths=("x",), encoding=codec)


def test_text_keys_with_dots(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [
        {"a": {"b": "inside"}},
        {"a.b": "as it is", "a": {"b": "inside"}},
        {"a": "no object"},
        {"a": {"c": "x"}},
        {"a": {"b": None}},
    ]
    path.write_bytes(b"\n".join(orjson.dumps(line) for line in lines))
    records = read_all(path, text_key="a.b")
    assert texts(records) == ["inside", "as it is"]
    assert reasons(records) == [(3, "missing_field"), (4, "missing_field"), (5, "null_text")]


def test_of_a_key_written_twice_the_last_counts(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "one", "text": "two", "url": "u"}\n{"text": "x", "n": NaN}')
    first, second = read_all(path)
    assert (first.text, first.url, second.text) == ("two", "u", "x")


def test_files_that_are_no_text_are_not_taken_for_text(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\x7fELF\0\0\0\nline\n")
    records = read_all(path, document="line")
    assert (texts(records), reasons(records)) == (["line"], [(1, "nul_byte")])


def test_readers_write_nothing(tmp_path):
    """Links and names that lead elsewhere are read at most; only the output changes."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.txt").write_text("linked")
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "..hidden.txt").write_text("hidden")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert texts(read_all(inside / "link" / "x.txt")) == ["linked"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_output_is_never_among_the_inputs(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.txt").write_text("x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    file = tmp_path / "c.yaml"
    file.write_bytes(
        orjson.dumps({"input": {"paths": str(tmp_path / "in")}, "output": str(tmp_path / "out")})
    )
    with pytest.raises(UserError, match="reads from the output directory"):
        load(DataPrepConfig, file, (), check)
