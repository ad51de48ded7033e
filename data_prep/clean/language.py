"""Which language a page is in, by a model that comes with its package."""

import functools
from typing import Any, ClassVar, Literal

import pydantic

from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from runtime.config import key

_SAMPLES, _SAMPLE = 4, 1000  # a long page is judged on 4 pieces of 1,000 characters
# The model's labels, ISO 639 codes, so that a wrong one is told before the run.
_CODES = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext
fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja
jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no
nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk
tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu
"""
LANGUAGES = frozenset(_CODES.split())


class Language(Rule):
    """Pages in one of some languages, judged with some confidence."""

    source: ClassVar[str] = "Lui and Baldwin 2012, ACL demo 5 (langid.py); py3langid's model"

    rule: Literal["language"] = key("language", "keeps pages in the languages asked for")
    keep: tuple[str, ...] = key(..., "languages to keep, as ISO 639 codes", min_length=1)
    min_confidence: float = key(
        0.5, "drop pages whose language is less certain than this", ge=0, le=1
    )

    @pydantic.field_validator("keep", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.field_validator("keep")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [code for code in value if code not in LANGUAGES]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is no language of the model; write ISO 639 codes such as en, zh"
            )
        return value

    def apply(self, page: Page) -> str | Dropped:
        """The page's text, or which language it is in instead."""
        code, confidence = detect(page.text)
        if code not in self.keep:
            return self.drop("other_language", f"{code} {confidence:.2f}")
        if confidence < self.min_confidence:
            least = self.min_confidence
            return self.below("uncertain", f"{code}", round(confidence, 6), least)
        return page.text

    def needs(self) -> tuple[str, ...]:
        """The package with the model."""
        return ("py3langid",)


def detect(text: str) -> tuple[str, float]:
    """The language of a text as its ISO 639 code, and the confidence in 0 … 1.

    A text of more than 4,000 characters is judged on pieces from all of it. Raises
    ModuleNotFoundError where py3langid is not installed.
    """
    code, confidence = _identifier().classify(sample(text))
    return str(code), float(confidence)


def sample(text: str) -> str:
    """The text, or pieces from its beginning, its end and between, evenly apart."""
    if len(text) <= _SAMPLES * _SAMPLE:
        return text
    step = (len(text) - _SAMPLE) // (_SAMPLES - 1)
    return " ".join(text[at * step : at * step + _SAMPLE] for at in range(_SAMPLES))


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
