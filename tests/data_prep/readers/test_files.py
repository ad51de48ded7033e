"""URLs: a real S3-compatible server, started here, and fsspec's own memory."""

import gzip
import re
import socket
import subprocess
import sys
import time

import boto3
import fsspec
import pytest

from data_prep import files
from data_prep.config import DataPrepConfig
from data_prep.input_config import Input, check_inputs, expand
from data_prep.plan import make_plan
from data_prep.readers import SegmentReader
from data_prep.sources import input_files, name_of
from runtime.errors import UserError
from tests.data_prep.readers.reading import texts
from tests.data_prep.samples import make_texts, write_jsonl

SECRET = "hunter2hunter2"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A client of a server that this test starts and ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    path = tmp_path_factory.mktemp("s3") / "log"
    log = path.open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=log,
        stderr=log,
    )
    keys = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    patch = pytest.MonkeyPatch()
    for name, value in keys.items():
        patch.setenv(name, value)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, path.read_text()
                assert time.monotonic() < deadline, f"no server: {path.read_text()}"
                time.sleep(0.1)
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="corpus")
        yield client
    finally:
        server.terminate()
        server.wait()
        log.close()
        patch.undo()


@pytest.fixture
def bucket(s3, tmp_path):
    wanted = make_texts(300)
    body = write_jsonl(tmp_path / "x.jsonl", wanted).read_bytes()
    s3.put_object(Bucket="corpus", Key="web/a.jsonl", Body=body)
    s3.put_object(Bucket="corpus", Key="web/deep/b.jsonl.gz", Body=gzip.compress(body))
    s3.put_object(Bucket="corpus", Key="web/.hidden/c.jsonl", Body=body)
    s3.put_object(Bucket="corpus", Key="web/readme.png", Body=b"x")
    return s3, wanted


def plan_of(tmp_path, *paths, unit=4096):
    config = DataPrepConfig(
        input=Input(paths=paths), output=str(tmp_path / "out"), work_unit_bytes=unit
    )
    (tmp_path / "out").mkdir(exist_ok=True)
    return make_plan(config, input_files(config, tmp_path))


def read(plan):
    records = []
    for unit in plan.units:
        for segment in unit.segments:
            source = plan.sources[segment.source]
            records += SegmentReader(source, segment, plan.config.input)
    return texts(records)


def test_folders_globs_and_files_of_s3(bucket, tmp_path):
    _, wanted = bucket
    both = ["s3://corpus/web/a.jsonl", "s3://corpus/web/deep/b.jsonl.gz"]
    assert expand("s3://corpus/web", "auto") == both
    assert expand("s3://corpus/web/*/*", "auto") == both[1:]
    assert expand(both[0], "auto") == both[:1]
    plan = plan_of(tmp_path, "s3://corpus/web")
    assert len(plan.units) > 3  # the plain one is cut, and read by ranges
    assert read(plan) == wanted * 2


def test_a_remote_file_is_told_apart_by_its_etag_and_not_downloaded_for_it(bucket, tmp_path):
    s3, _ = bucket
    (entry, *_) = plan_of(tmp_path, "s3://corpus/web/a.jsonl").identity["sources"]
    etag = s3.head_object(Bucket="corpus", Key="web/a.jsonl")["ETag"].strip('"')
    assert entry["version"] == f"etag {etag}"
    assert "sha256" not in entry


def test_a_file_that_changed_meanwhile_is_refused(bucket, tmp_path):
    s3, _ = bucket
    plan = plan_of(tmp_path, "s3://corpus/web/a.jsonl")
    body = s3.get_object(Bucket="corpus", Key="web/a.jsonl")["Body"].read()
    s3.put_object(Bucket="corpus", Key="web/a.jsonl", Body=body[::-1])  # as long as before
    assert plan.sources[0].changed()
    with pytest.raises(UserError, match=r"s3://corpus/web/a\.jsonl changed since"):
        read(plan)


def test_what_is_not_there_is_told_before_the_run(s3, tmp_path):
    def problem(path):
        (found,) = check_inputs(Input(paths=(path,)), tmp_path / "out")
        return f"{found.key}: {found.message}"

    assert (
        problem("s3://corpus/nothing")
        == "input.paths: s3://corpus/nothing holds no "
        + (problem("s3://corpus/nothing").partition("holds no ")[2])
    )
    assert "s3://no-such-bucket/x" in problem("s3://no-such-bucket/x/*.jsonl")
    assert "write a path or a URL" in problem("nonsense://x/y")


def test_secrets_of_the_environment_are_stored_nowhere(bucket, tmp_path):
    plan = plan_of(tmp_path, "s3://corpus/web")
    stored = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert SECRET not in f"{plan.identity} {plan.sources} {stored}"


def test_a_presigned_address_works_and_is_told_without_its_signature(bucket, tmp_path):
    s3, wanted = bucket
    url = s3.generate_presigned_url("get_object", {"Bucket": "corpus", "Key": "web/a.jsonl"})
    plan = plan_of(tmp_path, url)
    assert read(plan) == wanted
    assert plan.sources[0].name.endswith("/corpus/web/a.jsonl?<redacted>")
    assert "Signature" not in str(plan.identity)
    stored = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"Signature" not in stored


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://me:secret@host/x.jsonl", "https://<redacted>@host/x.jsonl"),
        ("https://host/x.jsonl?token=secret#secret", "https://host/x.jsonl?<redacted>"),
        ("s3://bucket/x.jsonl", "s3://bucket/x.jsonl"),
    ],
)
def test_addresses_as_they_are_shown(url, told):
    assert files.shown(url) == told
    assert files.file_name(url) == "x.jsonl"


def test_names_of_addresses_tell_them_apart_and_hold_no_secret(tmp_path):
    one, two = (f"https://host/get/x.jsonl?part={n}&token=secret" for n in "12")
    assert name_of(one) != name_of(two)
    assert re.fullmatch(r"https://host/get/x\.jsonl\?<redacted>#[0-9a-f]{12}", name_of(one))
    signed = ["https://host/x.jsonl?X-Amz-Expires=9&X-Amz-Signature=" + s for s in ("a", "b")]
    assert [name_of(url) for url in signed] == ["https://host/x.jsonl?<redacted>"] * 2
    parts = [f"https://host/x.jsonl?part={n}&sv=1&sig={s}" for n, s in ("1a", "1b", "2a")]
    assert name_of(parts[0]) == name_of(parts[1]) != name_of(parts[2])
    assert name_of("s3://bucket/x.jsonl") == "s3://bucket/x.jsonl"


def test_two_inputs_of_one_name_are_refused(tmp_path):
    urls = tuple(f"memory://{user}:secret@twice/x.jsonl" for user in ("a", "b"))
    config = DataPrepConfig(input=Input(paths=urls), output=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.sources.expand", lambda text, kind: [text])
        with pytest.raises(UserError, match="two inputs are named memory://<redacted>@twice"):
            input_files(config, tmp_path)


def test_urls_of_files_here_are_paths(tmp_path):
    path = write_jsonl(tmp_path / "a b.jsonl", ["x"])
    assert expand(path.as_uri(), "auto") == [path]
    assert not files.is_remote(path.as_uri())


def test_memory_is_read_as_any_storage(tmp_path):
    wanted = make_texts(100)
    data = write_jsonl(tmp_path / "x.jsonl", wanted).read_bytes()
    fsspec.filesystem("memory").pipe({"/one/x.jsonl": data, "/one/y.txt": b"plain"})
    try:
        assert read(plan_of(tmp_path, "memory://one/*.jsonl", unit=1024)) == wanted
    finally:
        fsspec.filesystem("memory").rm("/one", recursive=True)
