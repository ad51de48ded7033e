"""`python -m finetune seeds`: a config with several seeds, and how far the scores lie apart."""

from finetune.search.repeats import repeat


def main(arguments: list[str]) -> int:
    """Carry out what is not done yet, and sum up. Exit status as of every command."""
    return repeat("seeds", arguments)
