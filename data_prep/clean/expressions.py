"""Regular expressions that users write, refused where matching could take very long.

Python's matcher tries every way to split a text among the repeats of an expression. Repeats inside
repeats, as in `(a+)+`, take time exponential in the line's length, and three in a row cubic. There
is no time limit to fall back on that would decide the same on a slow machine as on a fast one, so
such expressions are refused, and the others see a bounded part of each line.
"""

import functools
import re

# The parser of `re` itself: what it finds is what will run.
from re import _constants, _parser  # type: ignore[attr-defined]  # typeshed leaves both out
from typing import Any

REACH = 2000  # characters of a line that an expression sees
_FEW = 16  # repeats of at most so often are not counted as repeats
_MAX_REPEATS = 2


def check_expression(text: str) -> str:
    """The expression, for a validator of a key: raises ValueError where it is wrong or slow."""
    try:
        tree = _parser.parse(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    if _repeats(tree, inside=False, text=text) > _MAX_REPEATS:
        raise ValueError(
            f"{text!r} has more than {_MAX_REPEATS} repeats without an end, which can take very "
            "long; write them possessively (x*+), bound them (x{0,9}) or use two expressions"
        )
    if compiled(text).match(""):
        raise ValueError(f"{text!r} matches the empty string, and so every line")
    return text


@functools.lru_cache(maxsize=256)
def compiled(text: str) -> re.Pattern[str]:
    """The expression, ready to search."""
    return re.compile(text)


def _repeats(tree: Any, *, inside: bool, text: str) -> int:
    """How many unbounded repeats an expression has. Raises ValueError for one inside another."""
    count = 0
    for operator, argument in tree:
        if operator in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            _, most, body = argument
            is_repeat = most > _FEW
            if is_repeat and inside:
                raise ValueError(
                    f"{text!r} repeats what is repeated already, which can take for ever; "
                    "write the inner repeat without + and *, or the outer one possessively (…)*+"
                )
            count += is_repeat + _repeats(body, inside=inside or is_repeat, text=text)
        elif operator in (_constants.POSSESSIVE_REPEAT, _constants.ATOMIC_GROUP):
            body = argument[2] if operator is _constants.POSSESSIVE_REPEAT else argument
            _repeats(body, inside=False, text=text)
        elif operator is _constants.SUBPATTERN:
            count += _repeats(argument[3], inside=inside, text=text)
        elif operator is _constants.BRANCH:
            count += max(_repeats(branch, inside=inside, text=text) for branch in argument[1])
        elif operator in (_constants.ASSERT, _constants.ASSERT_NOT):
            count += _repeats(argument[1], inside=inside, text=text)
        elif operator is _constants.GROUPREF_EXISTS:
            branches = [branch for branch in argument[1:] if branch is not None]
            count += max(_repeats(branch, inside=inside, text=text) for branch in branches)
        elif operator is _constants.GROUPREF and inside:
            raise ValueError(f"{text!r} repeats a back-reference, which can take for ever")
    return count
