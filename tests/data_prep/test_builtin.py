import ast
from collections import Counter

import orjson

from data_prep import builtin


def rows(path):
    return [orjson.loads(line) for line in path.open("rb")]


def test_the_corpus_is_real_and_reused(tmp_path):
    path = builtin.write_corpus(tmp_path)
    found = rows(path)
    assert path.stat().st_size > 5 << 20
    assert len({row["source"] for row in found}) == len(found) > 300
    names = {row["source"] for row in found}
    assert "asyncio/tasks.py" in names
    assert any(name.startswith("pydoc_data/topics/") for name in names)
    assert not any("site-packages" in name or "test" in name.split("/") for name in names)
    stamp = path.stat().st_mtime_ns
    builtin.write_corpus(tmp_path)
    assert path.stat().st_mtime_ns == stamp
    small = rows(builtin.write_corpus(tmp_path, max_bytes=1 << 20))
    assert sum(len(row["text"].encode()) for row in small) <= 1 << 20
    assert small == found[: len(small)]


def test_functions_are_labelled_distinct_and_split(tmp_path):
    paths = builtin.write_functions(tmp_path)
    found = {split: rows(path) for split, path in paths.items()}
    texts = [row["text"] for split in found.values() for row in split]
    assert len(set(texts)) == len(texts)
    sizes = {split: len(items) / len(texts) for split, items in found.items()}
    assert abs(sizes["train"] - 0.8) < 0.03
    assert abs(sizes["dev"] - 0.1) < 0.03
    labels = Counter(row["label"] for row in found["train"])
    assert len(labels) >= 12
    assert max(labels.values()) <= builtin.PER_LABEL
    assert set(labels) == {row["label"] for row in found["test"]}
    for row in found["dev"][:100]:
        ast.parse("if True:\n" + row["text"] if row["text"][0].isspace() else row["text"])
    stamps = [path.stat().st_mtime_ns for path in paths.values()]
    builtin.write_functions(tmp_path)
    assert [path.stat().st_mtime_ns for path in paths.values()] == stamps
