from pathlib import Path

from data_prep.input_config import expand


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text")
    return path


def test_a_glob_takes_the_folders_that_it_matches(tmp_path: Path) -> None:
    wanted = [make(tmp_path / "g" / name) for name in ("a.txt", "s1/x.txt", "s2/deep/y.jsonl")]
    make(tmp_path / "g" / "s1" / "picture.png")
    assert expand(str(tmp_path / "g" / "*"), "auto") == wanted


def test_a_folder_is_read_behind_links_and_each_file_once(tmp_path: Path) -> None:
    make(tmp_path / "real" / "x.txt")
    own = make(tmp_path / "corpus" / "a.txt")
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "corpus" / "loop").symlink_to(tmp_path / "corpus")
    make(tmp_path / "corpus" / ".hidden" / "h.txt")
    found = expand(str(tmp_path / "corpus"), "auto")
    assert found == [own, tmp_path / "corpus" / "link" / "x.txt"]
