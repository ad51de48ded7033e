"""The four published quality rule sets: speed against datatrove's, and where decisions differ.

In turns, one process each, so that a machine that slows down slows both: our chain of C4, Gopher
quality, Gopher repetition and FineWeb, and datatrove's filters of the same names, over the same
documents in memory. MB of UTF-8 per CPU-second (user + system) of the cleaning alone; medians.
Decisions are compared for each rule set alone, on the whole document, and for the chain.

datatrove counts words by spaCy (English) and jieba (Chinese); ours are in data_prep/clean/words.py.
To tell what that explains, datatrove's filters also decide with our words put in place of theirs.
For Chinese both sides have the keys that ask for spaces or English switched off.

    python benchmarks/data_prep_rules.py --peer-python VENV/bin/python --corpora DIR [--rounds 3]

VENV holds datatrove[io,processing]==0.10.1, spacy and jieba; DIR peps, eips, rust-rfcs and
zh-modern as NAME.jsonl.gz with a `text` in each line.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SETS = ("c4", "gopher_quality", "gopher_repetition", "fineweb")
CORPORA = {"en": ("peps", "eips", "rust-rfcs"), "zh": ("zh-modern",)}
Decide = Callable[[str], tuple[str | None, str]]  # text → reason or None, text that goes on


def our_rules(language: str) -> dict[str, Decide]:
    """Our rule sets with their defaults; for Chinese without what asks for spaces or English."""
    sys.path.insert(0, str(ROOT))
    from data_prep.clean.c4 import C4
    from data_prep.clean.cleaner import Cleaner
    from data_prep.clean.fineweb import FineWeb
    from data_prep.clean.gopher_quality import GopherQuality
    from data_prep.clean.gopher_repetition import GopherRepetition

    zh = language == "zh"
    c4 = C4(require_terminal_mark=False, min_words_per_line=0) if zh else C4()
    quality = GopherQuality(min_mean_word_length=1, min_stop_words=0) if zh else GopherQuality()
    chain = (c4, quality, GopherRepetition(), FineWeb())

    def deciding(*rules: Any) -> Decide:
        cleaner = Cleaner(rules)

        def decide(text: str) -> tuple[str | None, str]:
            after, dropped, _ = cleaner(text)
            return (f"{dropped.rule}:{dropped.reason}" if dropped else None), after or ""

        return decide

    return {rule.name: deciding(rule) for rule in chain} | {"chain": deciding(*chain)}


def peer_rules(language: str) -> dict[str, Decide]:
    """datatrove's filters, set alike."""
    from datatrove.data import Document  # type: ignore[import-not-found]  # the peer's venv alone
    from datatrove.pipeline import filters  # type: ignore[import-not-found]  # the same

    zh = language == "zh"
    more = {"language": "zho_Hani"} if zh else {}
    lines = {"filter_no_terminal_punct": False, "min_words_per_line": 0} if zh else {}
    words = {"min_avg_word_length": 1, "min_stop_words": 0} if zh else {}
    chain = {
        "c4": filters.C4QualityFilter(**lines, **more),
        "gopher_quality": filters.GopherQualityFilter(**words, **more),
        "gopher_repetition": filters.GopherRepetitionFilter(**more),
        "fineweb": filters.FineWebQualityFilter(**more),
    }

    def deciding(name: str) -> Decide:
        def decide(text: str) -> tuple[str | None, str]:
            document = Document(text=text, id="0")
            answer = chain[name].filter(document)
            return (None if answer is True else f"{name}:{answer[1]}"), document.text

        return decide

    single = {name: deciding(name) for name in SETS}

    def all_of_them(text: str) -> tuple[str | None, str]:
        for name in SETS:
            reason, text = single[name](text)
            if reason:
                return reason, text
        return None, text

    return single | {"chain": all_of_them}


def give_our_words() -> None:
    """Put our definition of a word in place of datatrove's."""
    sys.path.insert(0, str(ROOT))
    from datatrove.pipeline.filters import (  # type: ignore[import-not-found]  # as above
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    from data_prep.clean.words import split_words

    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        module.split_into_words = lambda text, language=None: split_words(text)


def work(options: argparse.Namespace) -> None:
    """One process: decisions of the sets that are asked for and the time of each."""
    texts: list[str] = json.loads(Path(options.documents).read_text(encoding="utf-8"))
    if options.work == "peer_with_our_words":
        give_our_words()
    rules = (our_rules if options.work == "ours" else peer_rules)(options.language)
    found: dict[str, Any] = {}
    for name in options.sets.split(","):
        rules[name](texts[0] * 2)  # models and tables are read before the clock starts
        begun = time.process_time()
        reasons = [rules[name](text)[0] for text in texts]
        found[name] = {"seconds": time.process_time() - begun, "reasons": reasons}
    print(json.dumps(found))


def run(options: argparse.Namespace, work: str, language: str, documents: Path, sets: str) -> Any:
    """What one such process finds."""
    python = sys.executable if work == "ours" else options.peer_python
    command = [python, __file__, "--work", work, "--language", language, "--sets", sets]
    done = subprocess.run(
        [*command, "--documents", str(documents)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def agreement(ours: list[str | None], theirs: list[str | None]) -> dict[str, Any]:
    """How many documents are decided alike, and the commonest differences."""
    differ = Counter(
        f"{their or 'kept'} / {our or 'kept'}"
        for our, their in zip(ours, theirs, strict=True)
        if (our is None) != (their is None)
    )
    share = 100 * (1 - differ.total() / len(ours))
    return {"percent": round(share, 2), "theirs / ours": dict(differ.most_common(6))}


def compare(options: argparse.Namespace, language: str, scratch: Path) -> dict[str, Any]:
    """Speeds and agreement on one language's documents."""
    texts: list[str] = []
    for name in CORPORA[language]:
        with gzip.open(Path(options.corpora) / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in file]
    every, sample = scratch / "every.json", scratch / "sample.json"
    every.write_text(json.dumps(texts), encoding="utf-8")
    chosen = texts[:: options.every]
    sample.write_text(json.dumps(chosen), encoding="utf-8")
    megabytes = {"ours": sum(len(t.encode()) for t in texts) / 1e6}
    megabytes["peer"] = sum(len(t.encode()) for t in chosen) / 1e6
    speeds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(options.rounds):
        for side, documents in (("ours", every), ("peer", sample)):
            seconds = run(options, side, language, documents, "chain")["chain"]["seconds"]
            speeds[side].append(round(megabytes[side] / seconds, 3))
    sets = ",".join((*SETS, "chain"))
    ours = run(options, "ours", language, sample, sets)
    theirs = run(options, "peer", language, sample, sets)
    same_words = run(options, "peer_with_our_words", language, sample, sets)
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    return {
        "documents": {"ours": len(texts), "peer": len(chosen)},
        "megabytes": {side: round(size, 2) for side, size in megabytes.items()},
        "chain MB per CPU-second": speeds,
        "chain medians": medians,
        "chain ratio": round(medians["ours"] / medians["peer"], 1),
        "sets MB per CPU-second": {
            name: {
                "ours": round(megabytes["peer"] / ours[name]["seconds"], 2),
                "peer": round(megabytes["peer"] / theirs[name]["seconds"], 2),
            }
            for name in SETS
        },
        "kept by ours": {name: found["reasons"].count(None) for name, found in ours.items()},
        "agreement": {n: agreement(ours[n]["reasons"], theirs[n]["reasons"]) for n in ours},
        "agreement on our words": {
            n: agreement(ours[n]["reasons"], same_words[n]["reasons"]) for n in ours
        },
    }


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peer-python", help="python with datatrove, spacy and jieba")
    parser.add_argument("--corpora", help="folder with NAME.jsonl.gz")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=8, help="the peer reads each so-many-th")
    parser.add_argument("--json", default=str(ROOT / "benchmarks/results/data_prep_rules.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--language", help=argparse.SUPPRESS)
    parser.add_argument("--documents", help=argparse.SUPPRESS)
    parser.add_argument("--sets", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    if not (options.peer_python and options.corpora):
        parser.error("--peer-python and --corpora are needed")
    results = {}
    for language in CORPORA:
        with tempfile.TemporaryDirectory() as scratch:
            results[language] = compare(options, language, Path(scratch))
        found = results[language]
        speed = found["chain medians"]
        print(
            f"{language}  chain {speed['ours']:.1f} MB/s, datatrove {speed['peer']:.2f} MB/s: "
            f"{found['chain ratio']} x"
        )
        for name, alike in found["agreement"].items():
            same = found["agreement on our words"][name]
            print(f"    {name:18} alike {alike['percent']} %, on our words {same['percent']} %")
    Path(options.json).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
