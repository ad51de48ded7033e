import gzip

import pyarrow as pa
import pytest
from pyarrow import parquet

from runtime.errors import UserError
from tests.data_prep.readers.reading import read_all, read_parts, reasons, texts
from tests.data_prep.samples import make_texts

WANTED = make_texts(1000)


def table(**columns):
    base = {
        "id": list(range(1000)),
        "text": WANTED,
        "meta": [{"body": text, "n": 1} for text in WANTED],
        "url": [f"u{n}" for n in range(1000)],
    }
    return pa.table({**base, **columns})


def write(path, data, rows=50):
    """Write by the name: .parquet, .arrow (a stream, as datasets writes) or .feather (a file)."""
    if path.suffix == ".parquet":
        parquet.write_table(data, path, row_group_size=rows)
        return path
    maker = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, maker(sink, data.schema) as writer:
        writer.write_table(data.combine_chunks(), max_chunksize=rows)
    return path


KINDS = ["x.parquet", "x.arrow", "x.feather"]
TYPES = [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("key", ["text", "meta.body"])
@pytest.mark.parametrize("unit", [3000, 1 << 30])
def test_rows_are_documents_whatever_the_cut(tmp_path, name, key, unit):
    path = write(tmp_path / name, table())
    parts = read_parts(path, unit, text_key=key)
    assert len(parts) == 1 if unit > 3000 else len(parts) > 10
    records = [record for part in parts for record in part]
    assert texts(records) == WANTED
    assert [record.line for record in records] == list(range(1, 1001))
    offsets = [record.offset for record in records]
    assert offsets == sorted(offsets)
    assert records[500].url == "u500"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_every_type_that_holds_text(tmp_path, name, kind):
    path = write(tmp_path / name, table(text=pa.array(WANTED).cast(kind)))
    assert texts(read_all(path, 3000)) == WANTED


@pytest.mark.parametrize("name", ["x.arrow", "x.feather"])
def test_packed_arrow(tmp_path, name):
    path = write(tmp_path / name, table())
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert texts(read_all(packed, 100)) == WANTED


@pytest.mark.parametrize("name", KINDS)
def test_bad_rows(tmp_path, name):
    values = pa.array([b"good", None, b"", b"caf\xff", b"x" * 200, b"good"])
    data = pa.table({"text": values.view(pa.string())})
    records = read_all(write(tmp_path / name, data, rows=4), 1, max_record_bytes=100)
    assert texts(records) == ["good", "good"]
    wanted = [(2, "null_text"), (3, "empty_text"), (4, "invalid_utf8"), (5, "too_long")]
    assert reasons(records) == wanted


@pytest.mark.parametrize("name", KINDS)
def test_a_column_that_is_missing_or_no_text(tmp_path, name):
    path = write(tmp_path / name, table())
    names = "'id', 'text', 'meta', 'url'"
    with pytest.raises(UserError, match=rf"no column 'body'; .* {names}") as told:
        read_all(path, text_key="body")
    assert told.value.status == 2
    with pytest.raises(UserError, match="column 'id' holds int64, not text"):
        read_all(path, text_key="id")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("harm", ["cut", "other", "middle"])
def test_damaged_files_are_named(tmp_path, name, harm):
    path = write(tmp_path / name, table())
    data = path.read_bytes()
    harmed = {
        "cut": data[: len(data) // 2],
        "other": b"this is no such file\n" * 100,
        "middle": data[: len(data) // 3] + b"\xff" * (len(data) // 3) + data[-len(data) // 3 :],
    }
    path.write_bytes(harmed[harm])
    with pytest.raises(UserError, match=rf"^{name}: is no \w+ (IPC )?file, or a damaged one"):
        read_all(path)
