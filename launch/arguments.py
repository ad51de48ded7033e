"""Types for argparse: numbers within bounds, and a line that says so where they are not."""

import argparse
import math
from collections.abc import Callable


def counted(name: str, least: int, most: int) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def read_number(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{name}: expected {least} to {most}, got {text!r}")
        return number

    return read_number


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value
