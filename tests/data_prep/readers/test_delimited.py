import csv
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


def expected_starts(body, limit):
    """Line numbers where records begin, by trying: the csv module reads ever more lines."""
    lines, starts, at = body.split("\n"), [], 0
    while at < len(lines):
        count = 1
        for stop in range(at + 1, len(lines) + 1):
            data = "\n".join(lines[at:stop])
            try:
                next(csv.reader([data], strict=True), [])
            except csv.Error as error:
                if "unexpected end of data" in str(error) and len(data) <= limit:
                    continue
            else:
                count = stop - at
            break
        if any(lines[at : at + count]):
            starts.append(at + 2)
        at += count
    return starts


@pytest.mark.parametrize("limit", [8, 1 << 20])
def test_record_ends_are_those_of_the_csv_module(tmp_path, limit):
    """Whatever stands there: quotes inside unquoted fields, after quoted ones, never closed."""
    rng = random.Random(5)
    path = tmp_path / "x.csv"
    for _ in range(600):
        body = "".join(rng.choices(["a", '"', ",", "\n"], k=40))
        path.write_text("text\n" + body, encoding="utf-8")
        found = read_all(path, max_record_bytes=limit)
        assert [record.line for record in found] == expected_starts(body, limit), body
        assert read_all(path, 7, max_record_bytes=limit) == found, body


@pytest.mark.parametrize("later", ["plain", '"quoted, with a comma"'])
@pytest.mark.parametrize("limit", [2000, 64 << 20])
@pytest.mark.parametrize("unit", [1000, 1 << 30])
def test_a_stray_quote_costs_one_row(tmp_path, later, limit, unit):
    rows = [f"{n},words of row {n}" for n in range(2000)]
    rows[1000] = '1000,"plain words'
    rows[1500] = f"1500,{later}"
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["id,text", *rows]) + "\n", encoding="utf-8")
    parts = read_parts(path, unit, max_record_bytes=limit)
    assert len(parts) > 30 or unit > 1000
    records = [record for part in parts for record in part]
    wanted = [row.partition(",")[2].strip('"') for row in rows]
    assert texts(records) == wanted[:1000] + wanted[1001:]
    assert reasons(records) == [(1002, "invalid_csv")]
    assert [record.line for record in records] == list(range(2, 2002))


def test_rows_that_each_might_begin_a_long_record_are_read_in_one_pass(tmp_path):
    path = tmp_path / "x.csv"
    count = 100_000  # each is in quotes at its end, by itself and behind the others
    path.write_text('id,text\n1,"a\n' + 'x","c\n' * count, encoding="utf-8")
    records = read_all(path, max_record_bytes=count)
    assert {reason for _, reason in reasons(records)} == {"invalid_csv"}
    assert len(records) == count + 1


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
def test_a_field_beyond_the_limit_is_bad(tmp_path, unit):
    long = 'with "quotes", commas, and more ' * 40_000  # beyond the csv module's own limit
    lines = long.replace("more ", "lines\n")
    path = write(tmp_path / "x.csv", [["text"], ["before"], [lines], ["after"], [long], ["last"]])
    assert texts(read_all(path, unit)) == ["before", lines, "after", long, "last"]
    records = read_all(path, unit, max_record_bytes=100_000)
    # Of a field with lines nobody can tell whether its quote is a stray one: no line is lost.
    assert len(records) == 1 + 40_000 + 1 + 1 + 1 + 1
    assert (records[0].text, records[-1].text) == ("before", "last")
    assert reasons(records)[0] == (3, "invalid_csv")
    assert reasons(records)[-1] == (records[-1].line - 1, "too_long")


def test_a_missing_column_is_told_with_the_columns_there_are(tmp_path):
    path = write(tmp_path / "x.csv", [["id", "body"], ["1", "x"]])
    with pytest.raises(UserError, match=r"x\.csv: column 'text' is nowhere .*'id', 'body'") as told:
        read_all(path)
    assert told.value.status == 2
    assert texts(read_all(path, text_key="body")) == ["x"]
