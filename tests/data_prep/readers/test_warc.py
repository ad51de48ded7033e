import gzip
import io
import zlib

import pytest
from warcio.bufferedreaders import BufferedReader
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from runtime.errors import UserError
from tests.data_prep.readers.reading import read_all, reasons, texts


def response(body, kind="text/html", status="200 OK", **headers):
    fields = [("Content-Type", kind), *((k.replace("_", "-"), v) for k, v in headers.items())]
    return "response", body, StatusAndHeaders(status, fields, protocol="HTTP/1.1")


def write(path, *records, packed=False, **fields):
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
        for name, value in fields.items():
            record.rec_headers.add_header(name.replace("_", "-"), value)
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


PAGE = b"<p>" + bytes(range(32, 127)) * 300
GZIP = gzip.compress(PAGE, mtime=0)
CHUNKED = b"6\r\n<p>two\r\n"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (GZIP[:-20], {"Content_Encoding": "gzip"}),
        (GZIP[:100] + b"\xff" * 50 + GZIP[150:], {"Content_Encoding": "x-gzip"}),
        (zlib.compress(PAGE)[:-8], {"Content_Encoding": "deflate"}),
        (b"\x0b\x02\x80hello\x03", {"Content_Encoding": "br"}),
        (b"\x28\xb5\x2f\xfdxxxx", {"Content_Encoding": "zstd"}),
        (CHUNKED, {"Transfer_Encoding": "chunked"}),
        (CHUNKED + b"4\r\n</p", {"Transfer_Encoding": "chunked"}),
        (CHUNKED[:-2] + b"xx0\r\n\r\n", {"Transfer_Encoding": "chunked"}),
    ],
)
def test_bodies_that_cannot_be_decoded_are_bad_records(tmp_path, monkeypatch, body, headers):
    monkeypatch.delitem(BufferedReader.DECOMPRESSORS, "br", raising=False)
    path = write(tmp_path / "x.warc", response(body, **headers), response(b"after"))
    records = read_all(path)
    assert texts(records) == ["after"]
    assert reasons(records) == [(2, "undecodable_payload")]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (zlib.compress(PAGE), {"Content_Encoding": "deflate"}),
        (zlib.compress(PAGE, wbits=-15), {"Content_Encoding": "deflate"}),
        (gzip.compress(PAGE[:9]) + gzip.compress(PAGE[9:]), {"Content_Encoding": "GZIP"}),
        (b"%x;a=b\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(GZIP), GZIP),
         {"Content_Encoding": "gzip", "Transfer_Encoding": "Chunked"}),
        # stored decoded, under the server's headers
        (PAGE, {"Content_Encoding": "gzip", "Transfer_Encoding": "chunked"}),
        (PAGE, {"Content_Encoding": "br"}),
        (PAGE, {"Content_Encoding": "deflate"}),
        (PAGE, {"Content_Encoding": "utf-8"}),
    ],
)  # fmt: skip
def test_bodies_are_decoded(tmp_path, body, headers):
    path = write(tmp_path / "x.warc", response(body, **headers))
    assert texts(read_all(path)) == [PAGE.decode()]
    limited = read_all(path, max_record_bytes=len(PAGE) - 1)
    assert reasons(limited) == [(2, "too_long")]


def test_brotli_is_unpacked_where_its_package_is(tmp_path, monkeypatch):
    class Brotli:
        """Another format under its name: what matters is who is asked."""

        def __init__(self):
            self._inner = zlib.decompressobj()

        def decompress(self, data):
            return self._inner.decompress(data)

        def is_finished(self):
            return self._inner.eof

    monkeypatch.setitem(BufferedReader.DECOMPRESSORS, "br", Brotli)
    body = zlib.compress(PAGE)
    path = write(
        tmp_path / "x.warc",
        *(response(data, Content_Encoding="br") for data in (body, body[:-5], b"\xff" + body)),
    )
    records = read_all(path)
    assert texts(records) == [PAGE.decode()]
    assert reasons(records) == [(3, "undecodable_payload"), (4, "undecodable_payload")]


def test_what_the_crawler_cut_off_and_what_is_no_text(tmp_path):
    path = write(tmp_path / "x.warc", response(b"<p>half"), WARC_Truncated="length")
    assert reasons(read_all(path)) == [(2, "truncated")]
    path = write(tmp_path / "y.warc", response(b"<p>a\0b"), response("ab".encode("utf-16")))
    records = read_all(path)
    assert reasons(records) == [(2, "nul_byte")]
    assert texts(records) == ["ab"]


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
