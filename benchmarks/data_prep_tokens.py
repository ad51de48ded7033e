"""Tokenising, MB of UTF-8 per CPU-second: our encoders, the bare library, and datatrove.

Every measurement is a process of its own on one core, in turns; medians are of all turns. Corpora
are JSONL files, packed or not, with the field "text"; a byte-level BPE of 32,768 entries is trained
on a part of each. CPU seconds are user and system time, without starting Python and reading the
texts into memory where a row measures encoding alone.

encode, gigatoken    documents in memory → DocumentTokenizer.encode_batch → ShardWriter.add_many
encode, tokenizers   the same with tokenizer.backend=tokenizers
raw tokenizers       documents in memory → encode_batch_fast, ids as lists
run, gigatoken       `python -m data_prep run` with workers=1: reading, checking, writing, all of it
run, tokenizers      the same with tokenizer.backend=tokenizers
datatrove            JsonlReader → DocumentTokenizer with the same tokenizer, one task

"Without start": less what the same command takes for one document, which no corpus makes longer.

    python benchmarks/data_prep_tokens.py NAME=FILE[,FILE…] … [--turns 3] [--peer-python PYTHON]
"""

import argparse
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROOT = Path(__file__).resolve().parent.parent
ROWS = ("encode, gigatoken", "encode, tokenizers", "raw tokenizers")
RUNS = ("run, gigatoken", "run, tokenizers")
BATCH_CHARACTERS = 1 << 20
TRAINING_SHARE = 8  # one document in so many
ONE_THREAD = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


def texts_of(files: list[Path]) -> list[str]:
    """Every document of some JSONL files."""
    found = []
    for file in files:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            found += [json.loads(line)["text"] for line in stream]
    return found


def batches(texts: list[str]) -> Iterator[list[str]]:
    """Batches of about as much text as a unit of work encodes at once."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def cpu_seconds() -> float:
    """What this process and its finished children used."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def encode(row: str, tokenizer: Path, files: list[Path]) -> float:
    """One of ROWS in this process: CPU seconds."""
    texts = texts_of(files)
    if row == "raw tokenizers":
        import tokenizers

        raw = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        before = cpu_seconds()
        for batch in batches(texts):
            for encoding in raw.encode_batch_fast(batch, add_special_tokens=False):
                _ = encoding.ids
        return cpu_seconds() - before
    from data_prep.indexed import ShardWriter
    from data_prep.tokenizer import DocumentTokenizer

    own = DocumentTokenizer(tokenizer, backend=row.rpartition(" ")[2])
    own.begin_unit(0)
    with tempfile.TemporaryDirectory() as scratch:
        before = cpu_seconds()
        with ShardWriter(Path(scratch), "train_00000", "train", own.vocab_size) as writer:
            for batch in batches(texts):
                encoded = own.encode_batch(batch)
                writer.add_many(encoded.ids, encoded.lengths)
            writer.finish()
        return cpu_seconds() - before


def run_whole(row: str, tokenizer: Path, files: list[Path], scratch: Path) -> float:
    """`python -m data_prep run` in a process of its own: CPU seconds, all of them."""
    output = scratch / f"run-{len(list(scratch.iterdir()))}"
    chosen = [
        f"input.paths={json.dumps([str(file) for file in files])}",
        f"output={output}",
        f"tokenizer.path={tokenizer}",
        f"tokenizer.backend={row.rpartition(' ')[2]}",
        "workers=1",
    ]
    before = cpu_seconds()
    call([sys.executable, "-m", "data_prep", "run", *chosen])
    return cpu_seconds() - before


PEER = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
folder, tokenizer, scratch = sys.argv[1:]
LocalPipelineExecutor(
    pipeline=[
        JsonlReader(folder),
        DocumentTokenizer(scratch + "/tokens", tokenizer_name_or_path=tokenizer,
                          eos_token="<|endoftext|>", local_working_dir=scratch + "/local"),
    ],
    tasks=1, workers=1, logging_dir=scratch + "/logs",
).run()
"""


def run_peer(python: str, tokenizer: Path, files: list[Path], scratch: Path) -> float:
    """datatrove's pipeline in a process of its own: CPU seconds, all of them."""
    number = len(list(scratch.iterdir()))
    folder = scratch / f"in-{number}"
    folder.mkdir()
    for file in files:
        (folder / file.name).symlink_to(file.resolve())
    made = scratch / f"peer-{number}"
    made.mkdir()
    before = cpu_seconds()
    call([python, "-c", PEER, str(folder), str(tokenizer / "tokenizer.json"), str(made)])
    return cpu_seconds() - before


def call(command: list[str]) -> str:
    """Run a command on one thread; its output."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | ONE_THREAD
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


def make_tokenizer(files: list[Path], directory: Path) -> None:
    """Train the byte-level BPE that all rows share."""
    from data_prep.tokenizer_config import TrainTokenizer
    from data_prep.tokenizer_train import train

    directory.mkdir()
    train(TrainTokenizer(vocab_size=32768), texts_of(files)[::TRAINING_SHARE], directory)


def measure(files: list[Path], options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Median MB per CPU-second of every row on one corpus."""
    tokenizer = scratch / "tokenizer"
    make_tokenizer(files, tokenizer)
    megabytes = sum(len(text.encode("utf-8")) for text in texts_of(files)) / 1e6
    one = scratch / "one.jsonl"
    one.write_text('{"text": "one document"}\n')
    found: dict[str, list[float]] = {}

    def add(row: str, seconds: float, start: float) -> None:
        found.setdefault(row, []).append(seconds)
        found.setdefault(f"{row}, without start", []).append(seconds - start)

    for _ in range(options.turns):
        for row in ROWS:
            command = [sys.executable, __file__, "--child", row, str(tokenizer), *map(str, files)]
            found.setdefault(row, []).append(float(call(command)))
        for row in RUNS:
            whole = run_whole(row, tokenizer, files, scratch)
            add(row, whole, run_whole(row, tokenizer, [one], scratch))
        if options.peer_python:
            whole = run_peer(options.peer_python, tokenizer, files, scratch)
            add("datatrove", whole, run_peer(options.peer_python, tokenizer, [one], scratch))
    return {row: megabytes / statistics.median(seconds) for row, seconds in found.items()}


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--child"]:
        row, tokenizer, *files = sys.argv[2:]
        print(encode(row, Path(tokenizer), [Path(file) for file in files]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpora", nargs="+", metavar="NAME=FILE[,FILE…]")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peer-python", help="a Python that has datatrove")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    rates: dict[str, dict[str, float]] = {}
    for corpus in options.corpora:
        name, _, files = corpus.partition("=")
        with tempfile.TemporaryDirectory() as scratch:
            rates[name] = measure([Path(f) for f in files.split(",")], options, Path(scratch))
        for row, rate in rates[name].items():
            print(f"{name:<12} {row:<36} {rate:8.2f} MB per CPU-second", flush=True)
    if options.json:
        from runtime import provenance

        result = {
            "script": "data_prep_tokens.py",
            "turns": options.turns,
            "megabytes_per_cpu_second": {
                name: {row: round(rate, 3) for row, rate in own.items()}
                for name, own in rates.items()
            },
            "versions": provenance.versions(),
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
