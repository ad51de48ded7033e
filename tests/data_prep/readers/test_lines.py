import gzip
import json
from pathlib import Path

import pytest

from data_prep.config import DataPrepConfig
from data_prep.input_config import Input
from data_prep.plan import make_plan
from data_prep.readers import BadRecord, Document, SegmentReader
from data_prep.sources import Segment, Source
from runtime.errors import UserError
from tests.data_prep.readers.reading import read_all, reasons
from tests.data_prep.samples import make_texts, write_jsonl


def read(path: Path, options: Input | None = None, kind: str = "jsonl"):
    source = Source(path.name, path, kind, path.stat().st_size, 0, "0" * 64)
    options = options or Input(paths=(str(path),))
    return list(SegmentReader(source, Segment(0, 0, source.size), options))


GOOD = b'{"text": "good"}'
BAD = {
    b'{"text": "cut': "invalid_json",
    b"[1]": "not_an_object",
    b'"text"': "not_an_object",
    b'{"body": "x"}': "missing_field",
    b'{"text": null}': "null_text",
    b'{"text": 5}': "not_a_string",
    b'{"text": ["x"]}': "not_a_string",
    b'{"text": ""}': "empty_text",
    b'{"text": " \\n"}': "empty_text",
    b'{"text": "\xff"}': "invalid_utf8",
    b'{"text": "\\ud800"}': "invalid_utf8",
    b"\x00\x01\x02": "invalid_json",
    b"[" * 100_000: "invalid_json",
}


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_bad_line_comes_out_and_none_ends_the_file(tmp_path, packed, ending):
    lines = [GOOD]
    for bad in BAD:
        lines += [bad, GOOD]
    data = ending.join(lines)  # the last line has no line break
    path = tmp_path / ("x.jsonl.gz" if packed else "x.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    records = read(path)
    assert [r.text for r in records if isinstance(r, Document)] == ["good"] * (len(BAD) + 1)
    bad = [r for r in records if isinstance(r, BadRecord)]
    assert [r.reason for r in bad] == list(BAD.values())
    assert [r.line for r in bad] == list(range(2, 2 * len(BAD) + 1, 2))


def test_pythons_json_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "x.jsonl"
    line = json.dumps({"text": "a", "score": float("nan")}).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\n\n" + line)
    assert [r.text for r in read(path)] == ["a", "a"]


@pytest.mark.parametrize(
    ("document", "texts"),
    [
        ("file", ["one\ntwo\r\n\n \n\nthree\n"]),
        ("line", ["one", "two", "three"]),
        ("paragraph", ["one\ntwo", "three"]),
    ],
)
def test_what_a_document_is_in_plain_text(tmp_path, document, texts):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\ntwo\r\n\n \n\nthree\n")
    options = Input(paths=(str(path),), document=document)
    assert [r.text for r in read(path, options, "text")] == texts


@pytest.mark.parametrize(
    ("kind", "document"), [("jsonl", "file"), ("text", "line"), ("text", "paragraph")]
)
@pytest.mark.parametrize("unit", [1000, 1 << 30])
def test_a_long_line_that_begins_with_white_space_is_counted(tmp_path, kind, document, unit):
    path = tmp_path / ("x.jsonl" if kind == "jsonl" else "x.txt")
    good = b'{"text": "good"}\n\n'
    long = b" " * 5000
    path.write_bytes(good + long + good + long + b"\n\n" + good)
    records = read_all(path, unit, max_record_bytes=2000, document=document)
    assert reasons(records) == [(3, "too_long"), (5, "too_long")]
    assert [r.line for r in records] == [1, 3, 5, 7]


def test_bad_bytes_spoil_one_paragraph_only(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\n\ntw\xffo\n\nthree")
    records = read(path, Input(paths=("x",), document="paragraph"), "text")
    assert [getattr(r, "text", None) for r in records] == ["one", None, "three"]
    assert (records[1].reason, records[1].line) == ("invalid_utf8", 3)


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_a_cut_gzip_is_an_error_that_names_it(tmp_path, keep):
    write_jsonl(tmp_path / "x", make_texts(500))
    data = gzip.compress((tmp_path / "x").read_bytes())
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match=r"x\.jsonl\.gz: the gzip file is cut off or damaged"):
        read(path)


@pytest.mark.parametrize("kind", ["jsonl", "line", "paragraph"])
@pytest.mark.parametrize("unit", [1024, 1500, 5000])
def test_cutting_a_file_into_units_keeps_every_record_once(tmp_path, kind, unit):
    texts = [t.replace("\n", " ") for t in make_texts(200)]
    texts[20] = "long " * 1000  # longer than a unit
    if kind == "jsonl":
        path = write_jsonl(tmp_path / "x.jsonl", texts)
    else:
        path = tmp_path / "x.txt"
        path.write_text(("\n" if kind == "line" else "\n \n\n").join(texts), encoding="utf-8")
    config = DataPrepConfig(
        input=Input(paths=(str(path),), document="line" if kind == "jsonl" else kind),
        output=str(tmp_path),
        work_unit_bytes=unit,
    )
    plan = make_plan(config, [(str(path), path)])
    assert len(plan.units) > 2
    segments = [s for u in plan.units for s in u.segments]
    assert [s.start for s in segments[1:]] == [s.end for s in segments[:-1]]
    found, lines = [], 0
    for segment in segments:
        reader = SegmentReader(plan.sources[0], segment, config.input)
        found += [r.text for r in reader]
        lines += reader.lines
    assert [t.strip() for t in found] == [t.strip() for t in texts]
    assert lines == len(path.read_bytes().splitlines())
