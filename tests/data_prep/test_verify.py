import shutil

import orjson
import pytest

from data_prep import Shards
from data_prep.__main__ import main
from data_prep.verify import verify_directory
from runtime.errors import UserError
from tests.data_prep.samples import contents


def test_a_sound_directory_has_no_problem(prepared, capsys):
    assert verify_directory(prepared) == []
    assert main(["verify", str(prepared)]) == 0
    assert main(["inspect", str(prepared)]) == 0
    out = capsys.readouterr().out
    assert "sound" in out
    assert "train[0]: '" in out


def test_a_flipped_bit_in_any_file_is_found_and_named(prepared):
    for name, data in contents(prepared).items():
        if name == "manifest.json" or not data:
            continue
        path = prepared / name
        changed = bytearray(data)
        changed[len(data) // 2] ^= 1
        path.write_bytes(changed)
        problems = verify_directory(prepared)
        assert problems, name
        assert all(problem.startswith(str(path)) for problem in problems)
        with pytest.raises(UserError, match=name):
            Shards(prepared, verify=True)
        path.write_bytes(data)
    assert verify_directory(prepared) == []


@pytest.mark.parametrize("name", ["train_00001.bin", "train_00001.idx", "tokenizer.json"])
def test_a_missing_or_cut_file_is_found_on_open(prepared, name):
    path = prepared / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"{name}: has {len(data) - 1} bytes, expected"):
        Shards(prepared)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: is missing"):
        Shards(prepared)
    assert any(name in problem for problem in verify_directory(prepared))


def test_swapped_shards_are_found(prepared, capsys):
    for end in ("bin", "idx"):
        one, two = prepared / f"train_00000.{end}", prepared / f"train_00001.{end}"
        shutil.move(one, prepared / "aside")
        shutil.move(two, one)
        shutil.move(prepared / "aside", two)
    assert main(["verify", str(prepared)]) == 1
    told = capsys.readouterr().err
    assert "train_00000.bin" in told
    assert "train_00001.bin" in told


def edit(prepared, change):
    path = prepared / "manifest.json"
    data = orjson.loads(path.read_bytes())
    change(data)
    path.write_bytes(orjson.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=2), "schema 2, this version reads 1"),
        (lambda m: m.pop("tokens"), "tokens: Field required"),
        (lambda m: m["shards"][0].update(file="../x.bin"), "shards.0.file"),
        (lambda m: m["shards"][0].update(tokens="5"), "shards.0.tokens"),
        (lambda m: m.update({"x" * 5000: 1}), r": x{200}: "),
    ],
)
def test_a_wrong_manifest_is_refused(prepared, change, message):
    edit(prepared, change)
    with pytest.raises(UserError, match=message):
        Shards(prepared)


def test_an_edited_manifest_is_found(prepared):
    edit(prepared, lambda m: m.update(documents=m["documents"] + 1))
    assert "documents do not add up" in verify_directory(prepared)[0]
    edit(prepared, lambda m: m["shards"].pop())
    assert any("fingerprint differs" in problem for problem in verify_directory(prepared))


def test_what_is_not_prepared_data_is_said(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert "no manifest.json" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_path_with_a_colon_is_a_path(prepared):
    moved = prepared.rename(prepared.with_name("a: b"))
    assert verify_directory(moved) == []
    (moved / "train_00000.bin").unlink()
    (moved / "train_00001.idx").write_bytes(b"")
    problems = verify_directory(moved)
    assert len(problems) == 2
    assert problems[0].startswith(f"{moved}/train_00000.bin: is missing")
    assert problems[1].startswith(f"{moved}/train_00001.idx: has 0 bytes")
