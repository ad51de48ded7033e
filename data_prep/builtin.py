"""The corpus that needs no download: the standard library of the Python that runs this.

Its sources and documentation are real text under the PSF licence; which package a function is
from gives real labels for fine-tuning.
"""

import ast
import hashlib
import platform
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from data_prep.atomic import write_atomic

CORPUS_BYTES = 32 << 20
LABELS, PER_LABEL, LEAST_PER_LABEL = 20, 800, 60
FUNCTION_CHARACTERS = (80, 4000)  # shorter tells nothing, longer would be cut by most models
# Installed packages, tests (much repetition, odd encodings), generated tables, other languages.
_SKIP = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
_RECIPE = 1  # raise it whenever the text below comes out differently


def write_corpus(directory: Path, max_bytes: int = CORPUS_BYTES) -> Path:
    """Write corpus.jsonl (text, source) unless this Python's is there already; return its path."""
    path = directory / "corpus.jsonl"
    _write_once(directory, "corpus", {"max_bytes": max_bytes}, lambda: {path: _corpus(max_bytes)})
    return path


def write_functions(directory: Path) -> dict[str, Path]:
    """Write functions.{train,dev,test}.jsonl (text, label); return their paths by split."""
    paths = {split: directory / f"functions.{split}.jsonl" for split in ("train", "dev", "test")}
    limits = {"labels": LABELS, "per_label": PER_LABEL}

    def make() -> dict[Path, list[dict[str, str]]]:
        rows: dict[Path, list[dict[str, str]]] = {path: [] for path in paths.values()}
        for text, label in _labelled_functions():
            tenth = _digest(text)[0] % 10
            split = {8: "dev", 9: "test"}.get(tenth, "train")
            rows[paths[split]].append({"text": text, "label": label})
        return rows

    _write_once(directory, "functions", limits, make)
    return paths


def _write_once(directory: Path, name: str, limits: dict[str, int], make: Any) -> None:
    """Write files unless a note, written after them, says that they are there and current."""
    note_path = directory / f"{name}.meta.json"
    note = {"recipe": _RECIPE, "python": platform.python_version(), **limits}
    try:
        if orjson.loads(note_path.read_bytes()) == note:
            return
    except (OSError, orjson.JSONDecodeError):
        pass
    directory.mkdir(parents=True, exist_ok=True)
    for path, rows in make().items():
        data = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        write_atomic(path, data)
    write_atomic(note_path, orjson.dumps(note))


def _modules() -> Iterator[tuple[str, str]]:
    """Yield (module path, source) of the standard library, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if set(inside.parts) & _SKIP or inside.parts[0].startswith("config-"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip():
            yield inside.as_posix(), text


def _corpus(max_bytes: int) -> Iterator[dict[str, str]]:
    left = max_bytes
    for source, text in _documents():
        left -= len(text.encode("utf-8"))
        if left < 0:
            return
        yield {"text": text, "source": source}


def _documents() -> Iterator[tuple[str, str]]:
    """The language's documentation, then every module."""
    for source, text in _modules():
        if source == "pydoc_data/topics.py":  # one dict of pages: each is a document of its own
            from pydoc_data.topics import topics

            for topic in sorted(topics):
                yield f"pydoc_data/topics/{topic}", topics[topic]
        else:
            yield source, text


def _labelled_functions() -> list[tuple[str, str]]:
    """(source of a function, its top-level package), at most PER_LABEL each, texts all distinct."""
    found: dict[str, str] = {}  # text → label
    shared: set[str] = set()  # texts that several packages have: no label is right
    for source, text in _modules():
        label = source.partition("/")[0].removesuffix(".py")
        for function in _functions(text):
            if found.setdefault(function, label) != label:
                shared.add(function)
    kept = {text: label for text, label in found.items() if text not in shared}
    largest = Counter(kept.values()).most_common(LABELS)
    rows = []
    for label, count in sorted(largest):
        if count >= LEAST_PER_LABEL:
            texts = sorted((t for t, own in kept.items() if own == label), key=_digest)
            rows += [(text, label) for text in texts[:PER_LABEL]]
    return sorted(rows, key=lambda row: _digest(row[0]))


def _functions(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines = text.split("\n")  # splitlines would count form feeds as lines, ast does not
    least, most = FUNCTION_CHARACTERS
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            body = "\n".join(lines[first - 1 : node.end_lineno]) + "\n"
            if least <= len(body) <= most:
                yield body


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
