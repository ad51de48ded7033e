"""Words in rows of tokens, with tokenizers that are trained here."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep.tokenizer import DocumentTokenizer, SpecialTokens
from data_prep.tokenizer_config import TrainTokenizer
from data_prep.tokenizer_train import train
from pretrain.objectives.words import ChineseWords, VocabularyWords

ENGLISH = (
    "the unbelievable neighbour walks along the riverside, counting seven stones (twice) and more."
)
CHINESE = "我来到北京清华大学，他来到了网易杭研大厦。小明硕士毕业于中国科学院计算所"


class Trained:
    """A tokenizer of a kind, trained on the two texts."""

    def __init__(self, directory: Path, kind: str) -> None:
        size = {"wordpiece": 160, "bpe": 400, "char": None}[kind]
        special = "auto" if kind == "wordpiece" else "bert"
        options = TrainTokenizer(
            kind=kind, vocab_size=size, min_frequency=1, special_tokens=special
        )
        # English in pieces, so that words have several tokens; a line for each Chinese
        # character, so that no token is made of two.
        pieces = " ".join(ENGLISH[i : i + 3] for i in range(0, len(ENGLISH), 2))
        train(options, [pieces, "\n".join(CHINESE)] * 3, directory)
        self.tokens = SpecialTokens(directory)
        self.tokenizer = DocumentTokenizer(directory)

    def words(self, find, text: str) -> list[list[str]]:
        """The text's tokens, word by word."""
        ids = self.tokenizer.encode([text])[0].astype(np.int64)[None]
        starts = find(ids, np.zeros_like(ids))[0]
        starts[0] = True
        texts = self.tokens.utf8(ids[0])
        names = [text.decode("utf-8", "replace").removeprefix(" ") for text in texts]
        bounds = [*np.flatnonzero(starts), len(names)]
        return [names[begin:end] for begin, end in pairwise(bounds)]


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "char"])
def trained(request, tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp(request.param), request.param)


def cut_by(*words: str):
    """A segmenter that knows some words, and takes all else for single characters."""

    def cut(text: str) -> list[str]:
        found, at = [], 0
        while at < len(text):
            word = next((w for w in words if text.startswith(w, at)), text[at])
            found.append(word)
            at += len(word)
        assert "".join(found) == text
        return found

    return cut


def joined(words: list[list[str]]) -> list[str]:
    return ["".join(word) for word in words if "".join(word)]


def test_words_of_english_by_the_vocabulary(trained: Trained) -> None:
    words = trained.words(VocabularyWords(trained.tokens), ENGLISH)
    expected = "the unbelievable neighbour walks along the riverside , counting seven stones ( "
    assert joined(words) == [*f"{expected}twice ) and more .".split()]
    assert sum(len(word) > 1 for word in words) > 3


def test_chinese_characters_are_words_without_a_segmenter(trained: Trained) -> None:
    words = trained.words(VocabularyWords(trained.tokens), "我来到北京")
    assert words == [["我"], ["来"], ["到"], ["北"], ["京"]]


def test_a_segmenter_joins_chinese_characters(trained: Trained) -> None:
    find = ChineseWords(trained.tokens, cut_by("来到", "北京", "清华大学", "硕士"))
    words = joined(trained.words(find, "我来到北京清华大学"))
    assert words == ["我", "来到", "北京", "清华大学"]


def test_other_scripts_keep_their_words_beside_chinese(trained: Trained) -> None:
    find = ChineseWords(trained.tokens, cut_by("来到", "北京", "the"))
    words = joined(trained.words(find, "the unbelievable 我来到the riverside 北京, walks"))
    assert [w for w in words if w.isascii()] == [
        *("the", "unbelievable", "the", "riverside", ",", "walks")
    ]
    assert "来到" in words
    assert "北京" in words


def test_a_segmenter_decides_next_to_chinese_alone(trained: Trained) -> None:
    find = ChineseWords(trained.tokens, lambda text: [text])
    words = joined(trained.words(find, "the stones我来到北京, walks"))
    assert words == ["the", "stones我来到北京,", "walks"]
    find = ChineseWords(trained.tokens, cut_by("京and"))
    assert joined(trained.words(find, "北京and more")) == ["北", "京and", "more"]


def test_a_segmenter_reads_each_segment_by_itself(trained: Trained) -> None:
    ids = trained.tokenizer.encode(["我来到北京我来到北京"])[0].astype(np.int64)
    seen: list[str] = []

    def cut(text: str) -> list[str]:
        seen.append(text.strip())
        return list(text)

    find = ChineseWords(trained.tokens, cut)
    half = len(ids) // 2
    segments = np.array([[-1] + [0] * (half - 1) + [1] * (len(ids) - half)])
    find(ids[None], segments)
    assert len(seen) == 2
    assert len(seen[1]) >= 5
    find(ids[None], np.full_like(segments, -1))
    assert len(seen) == 2


def test_special_tokens_end_a_word(trained: Trained) -> None:
    first, second = trained.tokenizer.encode(["北京"])[0].tolist()
    find = ChineseWords(trained.tokens, cut_by("北京"))
    row = np.array([[first, trained.tokens.mask_id, second, first, second]])
    assert find(row, np.zeros_like(row))[0].tolist() == [True, True, True, True, False]


def test_a_character_in_several_tokens_is_one_word_and_shifts_nothing(tmp_path: Path) -> None:
    trained = Trained(tmp_path, "bpe")
    words = trained.words(ChineseWords(trained.tokens, cut_by("北京", "来到")), "来到鑫北京")
    assert ["".join(words[0]), "".join(words[2])] == ["来到", "北京"]
    assert len(words[1]) in (2, 3)  # of the bytes of 鑫, which no training text had


def test_bytes_that_cut_chinese_characters_make_its_words(tmp_path: Path) -> None:
    """Byte-level BPE of little text: most characters are two or three tokens."""
    train(
        TrainTokenizer(kind="bpe", vocab_size=280, special_tokens="bert"), [CHINESE * 3], tmp_path
    )
    tokens, tokenizer = SpecialTokens(tmp_path), DocumentTokenizer(tmp_path)
    ids = tokenizer.encode(["我来到北京 and 北京 清华大学"])[0].astype(np.int64)
    assert len(ids) > 22
    seen: list[str] = []

    def cut(text: str) -> list[str]:
        seen.append(text)
        return cut_by("来到", "北京", "北京 清华", "清华大学")(text)

    starts = ChineseWords(tokens, cut)(ids[None], np.zeros_like(ids[None]))[0]
    assert seen[0].split() == ["我来到北京", "and", "北京", "清华大学"]
    bounds = [*np.flatnonzero(starts), len(ids)]
    written = [b"".join(tokens.utf8(ids[a:b])).decode().strip() for a, b in pairwise(bounds)]
    assert [word for word in written if word] == [
        *("我", "来到", "北京", "and", "北京", "清华大学")
    ]
    # A window that begins and ends inside a character has all words but the last one's.
    inside = slice(1, len(ids) - 1)
    found = ChineseWords(tokens, cut)(ids[None, inside], np.zeros_like(ids[None, inside]))[0]
    assert (found[3:-12] == starts[inside][3:-12]).all()


def test_jieba_finds_words_and_leaves_no_file(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("jieba")
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    from pretrain.objectives.segmenter import _loaded, jieba_cut

    _loaded.cache_clear()
    assert jieba_cut("我来到北京清华大学") == ["我", "来到", "北京", "清华大学"]
    text = f"{ENGLISH}\n{CHINESE} 卡拉OK，2024年 T恤\n\ufffd"
    assert "".join(jieba_cut(text)) == text
    assert list(tmp_path.iterdir()) == []  # jieba's own loader trusts a cache in a shared folder


def test_jieba_over_real_tokens(tmp_path: Path) -> None:
    pytest.importorskip("jieba")
    from pretrain.objectives.segmenter import jieba_cut

    trained = Trained(tmp_path, "wordpiece")
    words = trained.words(ChineseWords(trained.tokens, jieba_cut), CHINESE)
    assert joined(words)[:10] == [
        *("我", "来到", "北京", "清华大学", "，", "他", "来到", "了", "网易", "杭研"),
    ]
    assert len(words[3]) == 4
