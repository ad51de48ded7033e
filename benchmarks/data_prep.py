"""All benchmarks of data preparation, one after the other, with their results beside this file.

    python benchmarks/data_prep.py CORPORA --peer-python VENV/bin/python [--gigabytes 3]

CORPORA: a folder with peps, eips, rust-rfcs and zh-modern as NAME.jsonl.gz. The peer's environment
has datatrove[io,processing]==0.10.1, spacy, jieba and xxhash<4. Takes about half an hour on two
cores.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
ENGLISH, CHINESE = ("peps", "eips", "rust-rfcs"), "zh-modern"


def main() -> None:
    """Run every script; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--gigabytes", default="3")
    options = parser.parse_args()
    peer = ["--peer-python", options.peer_python]
    files = {name: f"{options.corpora}/{name}.jsonl.gz" for name in (*ENGLISH, CHINESE)}
    english = ",".join(files[name] for name in ENGLISH)
    run("data_prep_rules", "--corpora", str(options.corpora), *peer)
    tokens = ["--json", str(RESULTS / "data_prep_tokens_cpu.json")]
    run("data_prep_tokens", f"en={english}", f"{CHINESE}={files[CHINESE]}", *peer, *tokens)
    dedup = ["--json", str(RESULTS / "data_prep_dedup_cpu.json")]
    run("data_prep_dedup", *files.values(), *peer, *dedup)
    scale = RESULTS / "data_prep_scale_cpu.json"
    run("data_prep_scale", *files.values(), "--gigabytes", options.gigabytes, "--out", str(scale))
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        keys = [f"input.paths=[{files[ENGLISH[0]]}]", f"output={data}"]
        subprocess.run(
            [sys.executable, "-m", "data_prep", "run", *keys], cwd=HERE.parent, check=True
        )
        run("data_loader", data, "--json", str(RESULTS / "data_loader.json"))


def run(script: str, *arguments: str) -> None:
    """Run one script as it would be by hand."""
    print(f"== {script}", flush=True)
    subprocess.run([sys.executable, str(HERE / f"{script}.py"), *arguments], check=True)


if __name__ == "__main__":
    main()
