"""Plain data as YAML documents that other programs read."""

import re
from collections.abc import Sequence
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes what YAML 1.1, YAML 1.2 and JSON's readers take for the same."""

    def ignore_aliases(self, data: object) -> bool:
        """Write a value that is used twice twice."""
        return True


def _text_of(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Some readers take 1e3 for a number, and y for true.
    is_word = re.fullmatch(r"[A-Za-z][\w./-]+", text, re.ASCII)
    style = None if is_word else ("|" if "\n" in text else '"')
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_of)


def documents_to_yaml(documents: Sequence[dict[str, Any]]) -> str:
    """Plain dicts, lists, texts and numbers as documents of YAML, such as Kubernetes reads."""
    text: str = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
