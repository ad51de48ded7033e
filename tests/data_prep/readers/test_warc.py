import gzip
import io

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from runtime.errors import UserError
from tests.data_prep.readers.reading import read_all, reasons, texts


def response(body, kind="text/html", status="200 OK", **headers):
    fields = [("Content-Type", kind), *((k.replace("_", "-"), v) for k, v in headers.items())]
    return "response", body, StatusAndHeaders(status, fields, protocol="HTTP/1.1")


def write(path, *records, packed=False):
    stream = io.BytesIO()
    writer = WARCWriter(stream, gzip=packed)
    writer.write_record(writer.create_warcinfo_record("x", {"software": "a test"}))
    for number, (kind, body, http) in enumerate(records):
        record = writer.create_warc_record(
            f"https://example.org/{number}",
            kind,
            payload=io.BytesIO(body),
            http_headers=http,
            **({} if http else {"warc_content_type": "text/plain"}),
        )
        writer.write_record(record)
    path.write_bytes(stream.getvalue())
    return path


@pytest.mark.parametrize(("name", "packed"), [("x.warc", False), ("x.warc.gz", True)])
def test_pages_come_with_their_addresses(tmp_path, name, packed):
    path = write(
        tmp_path / name,
        response(b"<p>one</p>"),
        response(b"\x89PNG", "image/png"),
        response("<p>中文</p>".encode("gb18030"), "text/html; charset=GB2312"),
        ("metadata", b"fetchTimeMs: 5", None),
        response('<meta charset="shift_jis"><p>日本</p>'.encode("shift_jis")),
        response("<p>naïve “quotes”</p>".encode("cp1252")),
        response(gzip.compress(b"<p>packed</p>"), Content_Encoding="gzip"),
        response(b"6\r\n<p>two\r\n4\r\n</p>\r\n0\r\n\r\n", Transfer_Encoding="chunked"),
        packed=packed,
    )
    records = read_all(path)
    assert texts(records) == [
        "<p>one</p>",
        "<p>中文</p>",
        '<meta charset="shift_jis"><p>日本</p>',
        "<p>naïve “quotes”</p>",
        "<p>packed</p>",
        "<p>two</p>",
    ]
    # Counted from the file's first record, which says who wrote it.
    assert [record.line for record in records] == [2, 4, 6, 7, 8, 9]
    assert [record.url[-1] for record in records] == ["0", "2", "4", "5", "6", "7"]


def test_wet_files_give_text(tmp_path):
    path = write(
        tmp_path / "x.warc.wet.gz", ("conversion", "the text 字".encode(), None), packed=True
    )
    assert texts(read_all(path)) == ["the text 字"]


def test_pages_that_cannot_be_used(tmp_path):
    half = "字".encode()[:2]
    path = write(
        tmp_path / "x.warc",
        response(b"x" * 3000),
        response(b" "),
        response("<p>字字字".encode() + half, "text/html; charset=utf-8"),  # cut off by the crawler
        response(b"\xff\xfa\xf0 text" * 50, "text/html; charset=utf-8"),
        response(b"after"),
    )
    records = read_all(path, max_record_bytes=2000)
    assert texts(records) == ["<p>字字字\ufffd", "after"]
    assert reasons(records) == [(2, "too_long"), (3, "empty_text"), (5, "invalid_encoding")]


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_file_that_is_cut_off_is_named(tmp_path, keep):
    path = write(tmp_path / "x.warc", response(b"<p>one</p>"), response(b"two" * 500))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match=r"x\.warc: record 3 is cut off"):
        read_all(path)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (b"no record at all\r\n", "record 1 is cut off or no WARC record"),
        (b"WARC/1.0\r\nWARC-Type: response\r\nX: " + b"x" * (5 << 20), "headers are longer"),
        (b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\n\r\n", "its length"),
    ],
)
def test_what_is_no_warc_record(tmp_path, harm, match):
    path = tmp_path / "x.warc"
    path.write_bytes(harm)
    with pytest.raises(UserError, match=match):
        read_all(path)
