"""The known questions that are most like a new one, by TF-IDF."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

_CHINESE = re.compile(r"[㐀-鿿]")


class Found(NamedTuple):
    """A known question."""

    number: int
    similarity: float  # cosine, 0 … 1


class Retrieval:
    """Known questions by their words, and by their characters where they are Chinese."""

    def __init__(self, questions: Sequence[str]) -> None:
        is_chinese = sum(bool(_CHINESE.search(text)) for text in questions) > len(questions) / 2
        settings: dict[str, Any] = (
            {"analyzer": "char", "ngram_range": (1, 3)}
            if is_chinese
            else {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\w+"}
        )
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, **settings)
        self._matrix = self._vectorizer.fit_transform(questions)

    def nearest(self, text: str, count: int) -> list[Found]:
        """The `count` most similar questions, best first; without any that shares nothing."""
        row = self._vectorizer.transform([text])
        similarity = np.asarray((self._matrix @ row.T).todense()).ravel()
        best = np.argsort(-similarity, kind="stable")[:count]
        return [Found(int(i), float(similarity[i])) for i in best if similarity[i] > 0]
