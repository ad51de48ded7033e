"""The built-in demo: the running Python's standard library, as shards and as labelled functions."""

from pathlib import Path

from data_prep.builtin import write_functions
from data_prep.config import DataPrepConfig, check
from data_prep.pipeline import prepare
from runtime.config import load

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
DIRECTORY = Path("runs/demo")  # where the demo configs of the other stages look


def prepare_demo(directory: Path = DIRECTORY) -> None:
    """Make DIR/data and DIR/functions.*.jsonl, or return at once where they are there."""
    prepare(load(DataPrepConfig, CONFIG, [f"output={directory / 'data'}"], check))
    for split, path in write_functions(directory).items():
        print(f"  {split} functions for fine-tuning: {path}")
