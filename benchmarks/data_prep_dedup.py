"""MinHash signatures: MB per CPU-second of ours and of datatrove's; recall and false positives.

Speed: both sign the same documents, in turns, each in a process of its own; CPU seconds of signing
and writing the files, after the documents are in memory. "datatrove": as it comes, with the word
tokenizer of its language; "datatrove, split": with white space (Chinese: characters) for words.
Quality: of each document of the corpora, cut to 400 words, a copy with random words replaced,
deleted or doubled in runs; the true Jaccard similarity is that of the two sets of 5-word shingles,
by a regular expression and Python's sets. A pair counts as found where the copy is dropped.
A false positive is a dropped document, planted or not, without an earlier one of similarity ≥ 0.5.

    python benchmarks/data_prep_dedup.py peps.jsonl.gz zh-modern.jsonl.gz --peer-python PYTHON

JSON lines with the text under `text`. The peer's environment: datatrove[io,processing]==0.10.1,
xxhash<4, spacy, jieba.
"""

import argparse
import gzip
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")
_STEPS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
_WORDS = 400


def read(path: str, limit: float) -> list[str]:
    """Texts of a file, about so many bytes of them."""
    texts, size = [], 0
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            text = json.loads(line)["text"]
            texts.append(text)
            size += len(text.encode())
            if size >= limit:
                break
    return texts


def sign_ours(texts: list[str], folder: Path, is_chinese: bool) -> None:
    """Sign and write with our code; one path for every language."""
    from data_prep.dedup import DedupConfig, SignatureWriter

    config = DedupConfig.model_validate({"near": True})
    with SignatureWriter(folder, 0, config) as writer:
        for text in texts:
            writer.add(text)
        writer.finish()


def sign_datatrove(
    texts: list[str], folder: Path, is_chinese: bool, splits: bool = False
) -> Callable[[], None]:
    """The peer's first stage, ready to run."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupSignature

    step = MinhashDedupSignature(str(folder), language="cmn_Hani" if is_chinese else "eng")
    if splits:

        class Split:
            word_tokenize = staticmethod(list if is_chinese else str.split)

        step.word_tokenizer = Split()
    documents = [Document(text=text, id=str(n)) for n, text in enumerate(texts)]
    step.get_shingles("a text to load what is loaded once, 一段文字")
    return lambda: step.run(iter(documents))


def child(mode: str, path: str, limit: float) -> None:
    """Sign one corpus in this process and print the CPU seconds."""
    texts = read(path, limit)
    is_chinese = Path(path).name.startswith("zh")
    with tempfile.TemporaryDirectory() as folder:
        if mode == "ours":
            sign_ours(["once"], Path(folder) / "once", is_chinese)
            run: Callable[[], Any] = partial(sign_ours, texts, Path(folder), is_chinese)
        else:
            run = sign_datatrove(texts, Path(folder), is_chinese, mode.endswith("split"))
        start = time.process_time()
        run()
        seconds = time.process_time() - start
    print(json.dumps([sum(len(text.encode()) for text in texts), seconds]))


def speed(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median MB per CPU-second of each corpus and mode."""
    modes = {"ours": sys.executable}
    if options.peer_python:
        modes |= {"datatrove": options.peer_python, "datatrove, split": options.peer_python}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(options.turns):
        for path in options.corpora:
            for mode, python in modes.items():
                limit = options.megabytes if mode == "ours" else options.peer_megabytes
                command = [python, __file__, "--child", mode, path, str(limit * 1e6)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stdout + done.stderr)
                size, seconds = json.loads(done.stdout.splitlines()[-1])
                found[Path(path).name.split(".")[0]][mode].append(size / 1e6 / seconds)
    return {
        corpus: {mode: round(statistics.median(rates), 3) for mode, rates in of.items()}
        for corpus, of in found.items()
    }


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    """All runs of 5 words."""
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def jaccard(one: set[Any], other: set[Any]) -> float:
    """Shared over all."""
    return len(one & other) / max(len(one | other), 1)


def edited(rng: random.Random, words: list[str]) -> list[str]:
    """A copy with up to 60 runs of 1 to 3 words replaced, deleted or doubled."""
    words = list(words)
    for _ in range(rng.randrange(60)):
        at, length = rng.randrange(len(words)), rng.randint(1, 3)
        old = words[at : at + length]
        words[at : at + length] = rng.choice(([rng.choice(words) for _ in old], [], old * 2))
    return words


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Recall by true similarity, and false positives, of the whole of our matching."""
    from data_prep.dedup import DedupConfig, Job, SignatureWriter, duplicates, stages

    rng = random.Random(0)
    originals: list[list[str]] = []
    for path in options.corpora:
        for text in read(path, 1e9):
            words = _WORD.findall(text.lower())
            if len(words) >= 100:
                originals.append(words[:_WORDS])
    copies = [edited(rng, words) for words in originals]
    documents = originals + copies
    config = DedupConfig.model_validate({"near": True})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with SignatureWriter(folder, 0, config) as writer:
            for words in documents:
                writer.add(" ".join(words))
            writer.finish()
        for stage in stages(Job(folder, 1, config)):
            for number in stage.numbers:
                stage.task(number)
        dropped = duplicates(folder, 0).documents
    sets = [shingles(words) for words in documents]
    count = len(originals)
    planted = [jaccard(sets[n], sets[count + n]) for n in range(count)]
    rows = []
    for low, high in zip(_STEPS, [*_STEPS[1:], 1.01], strict=True):
        group = [n for n, similarity in enumerate(planted) if low <= similarity < high]
        if group:
            hits = sum(count + n in dropped for n in group)
            rows.append(
                {"jaccard_from": low, "pairs": len(group), "found": round(hits / len(group), 4)}
            )
    must = [n for n, similarity in enumerate(planted) if similarity >= 0.8]
    false = [n for n in dropped if not _has_like(n, sets, dropped[n].document, count)]
    return {
        "documents": len(documents),
        "dropped": len(dropped),
        "recall_at_0.8": round(sum(count + n in dropped for n in must) / len(must), 4),
        "false_positives": round(len(false) / len(dropped), 5),
        "by_similarity": rows,
        "median_error_of_estimates": round(
            statistics.median(
                abs(d.similarity - jaccard(sets[n], sets[d.document])) for n, d in dropped.items()
            ),
            4,
        ),
    }


def _has_like(number: int, sets: list[set[Any]], told: int, count: int) -> bool:
    """Whether what a document is told to repeat, or its original, is of similarity ≥ 0.5."""
    others = [told] + ([number - count] if number >= count else [])
    return any(jaccard(sets[number], sets[other]) >= 0.5 for other in others)


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpora", nargs="+", help="JSON lines, gzipped; zh* is Chinese")
    parser.add_argument("--peer-python", help="an interpreter that has datatrove")
    parser.add_argument("--megabytes", type=float, default=100, help="of each corpus, for ours")
    parser.add_argument("--peer-megabytes", type=float, default=3, help="of each, for the peer")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    result = {
        "script": "data_prep_dedup.py",
        "turns": options.turns,
        "megabytes_per_cpu_second": speed(options),
        "quality": quality(options),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        from runtime import provenance

        result["versions"] = {**provenance.versions(), "datatrove": "0.10.1"}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
