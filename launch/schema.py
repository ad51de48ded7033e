"""`python -m launch schema STAGE`: a config's JSON Schema, for editors."""

import argparse
import json
from collections.abc import Sequence

from data_prep.config import DataPrepConfig
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from runtime.config import Config
from runtime.errors import EXIT_OK

CONFIGS: dict[str, type[Config]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "data_prep": DataPrepConfig,
}


def main(argv: Sequence[str]) -> int:
    """Print the schema."""
    parser = argparse.ArgumentParser(prog="python -m launch schema", description=__doc__)
    parser.add_argument("stage", choices=list(CONFIGS))
    stage = parser.parse_args(argv).stage
    print(json.dumps(CONFIGS[stage].model_json_schema(), indent=2, ensure_ascii=False))
    return EXIT_OK
