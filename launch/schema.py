"""`python -m launch schema STAGE [--markdown]`: a config's JSON Schema, or its keys as a page."""

import argparse
import json
from collections.abc import Sequence

from data_prep.config import DataPrepConfig
from finetune.config import FinetuneConfig
from finetune.multitask.config import MultitaskConfig
from launch.reference import markdown
from pretrain.config import PretrainConfig
from runtime.config import Config
from runtime.errors import EXIT_OK

CONFIGS: dict[str, type[Config]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "multitask": MultitaskConfig,
    "data_prep": DataPrepConfig,
}


def main(argv: Sequence[str]) -> int:
    """Print the schema, or the page."""
    parser = argparse.ArgumentParser(prog="python -m launch schema", description=__doc__)
    parser.add_argument("stage", choices=list(CONFIGS))
    parser.add_argument(
        "--markdown", action="store_true", help="every key as a page: docs/configuration/STAGE.md"
    )
    options = parser.parse_args(argv)
    schema = CONFIGS[options.stage]
    if options.markdown:
        print(markdown(options.stage, schema), end="")
    else:
        print(json.dumps(schema.model_json_schema(), indent=2, ensure_ascii=False))
    return EXIT_OK
