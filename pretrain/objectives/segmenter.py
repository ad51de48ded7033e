"""Words of Chinese text, by jieba. The only file that imports it."""

import functools
import logging
import warnings
from collections.abc import Callable

Cut = Callable[[str], list[str]]


def jieba_cut(text: str) -> list[str]:
    """Cut a text into words; joined they are the text.

    The dictionary is loaded, in a second, by the first call in each process: a data worker is
    given this function by its name, for what jieba makes of the dictionary cannot be copied to it.
    """
    return _loaded()(text)


@functools.cache
def _loaded() -> Cut:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own source, on today's Python
        import jieba

    jieba.setLogLevel(logging.WARNING)
    words = jieba.Tokenizer()
    # Not by its own `initialize`, which unmarshals a file of a known name from the shared temporary
    # directory: whoever wrote it there first would run code here.
    words.FREQ, words.total = words.gen_pfdict(words.get_dict_file())
    words.initialized = True
    cut: Cut = words.lcut
    return cut
