import gzip

import pytest

from finetune.readers import read_records
from runtime.errors import UserError
from tests.finetune.toys import write_jsonl

KEYS = ("text", "label")
ROWS = [("plain", "1"), ('a "quoted", word', "größer"), ("Zoë 中文", "x y"), ("two  spaces", "-3")]


def _write_all(directory):
    import csv

    paths = [write_jsonl(directory / "a.jsonl", [{"text": t, "label": y} for t, y in ROWS])]
    with (directory / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("label", "text"), *((y, t) for t, y in ROWS)])
    lines = ["text\tother\tlabel", *(f"{t}\t0\t{y}" for t, y in ROWS)]
    (directory / "a.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (directory / "a.csv").read_bytes())
    (directory / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + paths[0].read_bytes() + b"\n\n")
    plain = [directory / name for name in ("a.jsonl", "a.csv", "a.tsv", "bom.csv", "bom.jsonl")]
    for path in plain[:3]:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    return [*plain, *(path.with_name(path.name + ".gz") for path in plain[:3])]


def test_every_format_holds_the_same(tmp_path):
    paths = _write_all(tmp_path)
    assert len(paths) == 8
    for path in paths:
        found = [(r.values["text"], r.values["label"]) for r in read_records(path, KEYS)]
        assert found == ROWS, path


def test_a_csv_field_may_hold_lines(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one\ntwo",x\nthree,y\n')
    found = list(read_records(tmp_path / "a.csv", ("text", "label")))
    assert [(r.line, r.values["text"]) for r in found] == [(3, "one\ntwo"), (4, "three")]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', [(2, "not valid JSON")]),
        ("a.jsonl", b"[1]\n", [(1, "expected a JSON object, got list")]),
        (
            "a.jsonl",
            b'{"text": "x", "lable": 1}\n',
            [(1, "no key 'label'; it has 'text', 'lable'; did you")],
        ),
        ("a.jsonl", b'{"text": "\xff", "label": 1}\n', [(1, "not valid JSON")]),
        ("a.csv", b"text,lab\nx,y\n", [(1, "no column 'label'")]),
        ("a.csv", b"", [(1, "no column 'text'; it has none"), (1, "no column 'label'")]),
        (
            "a.csv",
            b"text,label\nx\na,b\nc,d,e\n",
            [(2, "1 columns, expected the header's 2"), (4, "3 columns")],
        ),
        ("a.tsv", b"text\tlabel\nx y\n", [(2, "1 columns")]),
    ],
)
def test_wrong_records_name_their_line(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    found = [
        (r.line, r.problem) for r in read_records(tmp_path / name, ("text", "label")) if r.problem
    ]
    assert [line for line, _ in found] == [line for line, _ in expected]
    for (_, got), (_, start) in zip(found, expected, strict=True):
        assert got.startswith(start)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "its name must end in .jsonl"),
        ("a.csv", "text,label\nü,x\n".encode("latin-1"), "not UTF-8 text"),
        ("a.csv", b'text,label\n"x,y\n', "not valid CSV"),
        ("a.jsonl.gz", gzip.compress(b"x" * 1000)[:-9], "cut off or damaged"),
        ("a.jsonl.gz", b"plain", "cut off or damaged"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_records(tmp_path / name, ("text", "label")))
    assert caught.value.status == 2
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        list(read_records(tmp_path / "a.csv", ("text",)))


@pytest.mark.parametrize("head", ["text,label\n", ""])
def test_a_header_is_seen_where_columns_are_named(tmp_path, head):
    path = tmp_path / "a.csv"
    path.write_text(f"{head}x,1\ny,2\n")
    found = list(read_records(path, ["text"], columns=["text", "label"]))
    assert [record.values["text"] for record in found] == ["x", "y"]
    other = tmp_path / "b.csv"  # to predict on: its own header, and no label
    other.write_text("text\nx\n")
    (only,) = read_records(other, ["text"], columns=["label", "text"])
    assert only.values == {"text": "x"}
