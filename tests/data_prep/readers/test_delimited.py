import csv
import io
import random

import pytest

from runtime.errors import UserError
from tests.data_prep.readers.reading import read_all, read_parts, reasons, texts

PIECES = ["a", '"', ",", "\n", "\r\n", "\t", "é", "字", " "]


def made_texts(count=400):
    rng = random.Random(3)
    return [f"{n}{''.join(rng.choices(PIECES, k=rng.randint(0, 30)))}" for n in range(count)]


def write(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize(("name", "delimiter"), [("x.csv", ","), ("x.tsv", "\t")])
@pytest.mark.parametrize("unit", [300, 1 << 30])
def test_quoted_line_breaks_are_no_ends_of_records(tmp_path, name, delimiter, unit):
    wanted = made_texts()
    rows = [["n", "text", "url"], *([n, text, f"u{n}"] for n, text in enumerate(wanted))]
    path = write(tmp_path / name, rows, delimiter)
    parts = read_parts(path, unit)
    assert len(parts) == 1 if unit > 300 else len(parts) > 10
    records = [record for part in parts for record in part]
    assert texts(records) == wanted
    assert records[7].url == "u7"
    data = path.read_bytes()
    for record in records:
        before = data[: record.offset]
        assert record.line == before.count(b"\n") + 1
        assert data[record.offset :].startswith(record.text[:1].encode()) or data[record.offset :]


def test_record_ends_are_those_of_the_csv_module(tmp_path):
    """Whatever stands there: quotes inside unquoted fields, after quoted ones, at line ends."""
    rng = random.Random(5)
    for _ in range(300):
        body = "".join(rng.choices(["a", '"', ",", "\n"], k=40))
        path = tmp_path / "x.csv"
        path.write_text("text\n" + body, encoding="utf-8")
        stream = io.StringIO(body, newline="")
        ends = []
        reader = csv.reader(stream)
        ends = [reader.line_num + 2 for row in reader if row]  # where the next record begins
        starts = [2, *ends][: len(ends)]
        found = [record.line for record in read_all(path)]
        blank = {n for n, line in enumerate(body.split("\n"), start=2) if not line}
        skipped = []
        for start in starts:
            while start in blank:
                start += 1
            skipped.append(start)
        assert found == skipped, body


def test_bad_records_are_named_by_line_and_spoil_no_other(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,text\r\n1,good\r\n2,bad \xff\r\n\r\n3\r\n4,one,two\r\n5,\r\n6,nul\0\r\n"
        b'7,"quoted"stray\r\n8,good\r\n9,"never closed'
    )
    records = read_all(path)
    assert texts(records) == ["good", "good"]
    assert reasons(records) == [
        (3, "invalid_utf8"),
        (5, "wrong_field_count"),
        (6, "wrong_field_count"),
        (7, "empty_text"),
        (8, "nul_byte"),
        (9, "invalid_csv"),
        (11, "invalid_csv"),
    ]


@pytest.mark.parametrize("unit", [1 << 12, 1 << 30])
def test_a_field_beyond_the_limit_is_one_bad_record(tmp_path, unit):
    long = 'with "quotes", commas\nand lines ' * 40_000  # 1.3 MB, beyond the csv module's own limit
    path = write(tmp_path / "x.csv", [["text"], ["before"], [long], ["after"]])
    assert texts(read_all(path, unit)) == ["before", long, "after"]
    records = read_all(path, unit, max_record_bytes=100_000)
    assert texts(records) == ["before", "after"]
    assert reasons(records) == [(3, "too_long")]
    assert records[-1].line == 3 + 40_000 + 1


def test_a_missing_column_is_told_with_the_columns_there_are(tmp_path):
    path = write(tmp_path / "x.csv", [["id", "body"], ["1", "x"]])
    with pytest.raises(UserError, match=r"x\.csv: column 'text' is nowhere .*'id', 'body'") as told:
        read_all(path)
    assert told.value.status == 2
    assert texts(read_all(path, text_key="body")) == ["x"]
