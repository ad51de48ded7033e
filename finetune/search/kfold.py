"""`python -m finetune kfold`: every example predicted by a run that has not seen it."""

from finetune.search.repeats import repeat


def main(arguments: list[str]) -> int:
    """Carry out what is not done yet, and sum up. Exit status as of every command."""
    return repeat("kfold", arguments)
