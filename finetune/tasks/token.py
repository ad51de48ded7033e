"""A tag for each word: named entities, parts of speech, word segmentation. Torch-free."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.tasks import entity_scores, tagging
from finetune.tasks.base import IGNORE_INDEX, Encoded, Indices, Outputs, Problem, Task, join
from finetune.tasks.classification import unknown_labels
from finetune.tasks.tagged_files import Marked, Tagged, read_tagged
from finetune.tasks.tagging import OUTSIDE, Census, Entity
from finetune.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

# Columns of what is kept of each word: its class, how sure that is, and the right one's
# log-probability.
_CLASS, _PROBABILITY, _GOLD = range(3)


@dataclass(frozen=True)
class Sentence:
    """Words with the entities among them; with tags that stand alone, each word is one."""

    line: int
    text: str
    offsets: tuple[tuple[int, int], ...]  # of each word in the text
    entities: tuple[Entity, ...] | None  # none in a text to predict on
    is_plain: bool = False  # its tags stand alone
    is_text: bool = False  # its file has the text itself, not its words
    stratum: str = ""

    @property
    def words(self) -> list[str]:
        """The words."""
        return [self.text[start:end] for start, end in self.offsets]


@dataclass(frozen=True)
class EncodedSentences(Encoded):
    """Sentences as token ids; a label stands on each word's first token and on no other."""

    kept: tuple[Indices, ...] = ()  # the words of each sentence that have a token, in order


class TokenTagging(Task):
    """A tag for each word, scored as entities."""

    kind = "token"
    head = "token"
    metrics = ("f1", "precision", "recall", "macro_f1", "token_accuracy")

    # --- reading

    def stream(self, path: Path, *, labelled: bool = True) -> Iterator[Sentence | Problem]:
        """Yield the sentences of a file, with their entities where `labelled`."""
        scheme = self._scheme(path) if labelled else ""
        for found in read_tagged(path, self.keys, labelled=labelled):
            if isinstance(found, Problem):
                yield found
            elif found.tags is None:
                yield _of_text(found, labelled=labelled)
            else:
                yield self._of_tags(found, scheme)

    def _scheme(self, path: Path) -> str:
        """The scheme of a file's tags: the one that is set, else what they look like."""
        if self.keys.scheme != "auto":
            return self.keys.scheme
        census = Census()
        for found in read_tagged(path, self.keys, labelled=True):
            if isinstance(found, Tagged) and found.tags is not None:
                census.add(found.tags)
        return census.scheme

    def _of_tags(self, found: Tagged, scheme: str) -> Sentence | Problem:
        assert found.tags is not None
        if scheme != "tags":
            for i, tag in enumerate(found.tags):
                if tagging.parts(tag) is None:
                    return Problem(
                        found.line_of(i),
                        f"tag {tag!r} does not say where an entity begins, as other tags of this "
                        "file do (O, B-, I-, …); correct it, or set task.scheme: tags to learn "
                        "every tag for itself",
                    )
        entities, broken = tagging.entities(found.tags, scheme)
        if broken and not self.keys.repair_tags:
            index, reason = broken[0]
            return Problem(
                found.line_of(index),
                f"tag {reason} (read as {scheme}); correct it, or set task.repair_tags: true to "
                "read such tags leniently",
            )
        return Sentence(
            found.line, found.text, tuple(found.offsets), tuple(entities), scheme == "tags"
        )

    def label_names(self, train: Sequence[Sentence]) -> list[str]:
        """The tags: O, then B- and I- of every type; or those that stand alone, sorted."""
        types = sorted({entity.type for sentence in train for entity in sentence.entities or ()})
        if any(sentence.is_plain for sentence in train):
            return types
        marked = [tagging.tag_name(position, name) for name in types for position in "BI"]
        return [OUTSIDE, *marked]

    def check(self, name: str, examples: Sequence[Sentence], labels: Sequence[str]) -> list[str]:
        """Types that train does not have, and a training set of one tag."""
        if name == "train":
            if len(labels) > 1:
                return []
            return [f"every word has the tag {labels[0]!r}; a second one is needed"]
        is_plain = self._is_plain(labels)
        # A set whose only tag is O has entities or plain tags alike.
        said = (s for s in examples if s.entities or s.is_plain)
        other = next((s for s in said if s.is_plain != is_plain), None)
        if other is not None:
            here, there = ("tags of words", "entities")[:: 1 if other.is_plain else -1]
            return [f"line {other.line} has {here}, and train {there}"]
        if is_plain:
            tags = ((tag, s.line) for s in examples for tag in _tags(s, is_plain))
            return unknown_labels(tags, labels)
        types = ((e.type, s.line) for s in examples for e in s.entities or ())
        return unknown_labels(types, sorted({self._type(label) for label in labels}))

    def _is_plain(self, labels: Sequence[str]) -> bool:
        return self.keys.scheme == "tags" or any(tagging.parts(name) is None for name in labels)

    def _type(self, label: str) -> str:
        """The type that a tag of the model stands for."""
        found = tagging.parts(label)
        return label if found is None or self.keys.scheme == "tags" else found[1]

    # --- the model

    def encode(
        self, examples: Sequence[Sentence], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Encoded:
        """Tokenise word by word; labels (sum of lengths,) stand on the first token of each word."""
        number = {name: i for i, name in enumerate(labels)}
        is_plain = self._is_plain(labels)
        rows: list[npt.NDArray[np.int32]] = []
        classes: list[npt.NDArray[np.int64]] = []
        kept: list[Indices] = []
        truncated = 0
        spaced = (_spaced(example) for example in examples)
        for example, found in zip(examples, tokenizer.encode_words(spaced), strict=True):
            # A sentence to predict on counts as the first class: nobody looks at it.
            own = np.zeros(len(example.offsets), dtype=np.int64)
            if example.entities is not None:
                own[:] = [number[tag] for tag in _tags(example, is_plain)]
            words = np.flatnonzero(found.firsts >= 0)
            row = np.full(len(found.ids), IGNORE_INDEX, dtype=np.int64)
            row[found.firsts[words]] = own[words]
            rows.append(found.ids)
            classes.append(row)
            kept.append(words)
            truncated += found.is_truncated
        tokens, starts = join(rows)
        return EncodedSentences(
            examples,
            tokens,
            starts,
            np.concatenate(classes),
            truncated,
            is_token_level=True,
            kept=tuple(kept),
        )

    def reduce(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> Outputs:
        """Each word's class, its probability, and the right class's log-probability (words, 3)."""
        import torch

        found = logits.float().log_softmax(-1)
        best, classes = found.max(-1)
        labels = batch["labels"]
        gold = found.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        columns = torch.stack([classes.float(), best.exp(), gold], -1).cpu().numpy()
        is_word = (labels != IGNORE_INDEX).cpu().numpy()
        return [row[mask] for row, mask in zip(columns, is_word, strict=True)]

    # --- what the model says

    def scores(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, float]:
        """Entity-level F1, precision and recall; macro-F1 of the types; token accuracy; loss.

        A word that was cut off, or of which the tokenizer keeps nothing, has no entity and a wrong
        tag: what was cut counts as missed.
        """
        counts = self._counts(data, outputs, labels)
        every = entity_scores.overall(counts)
        rows = entity_scores.by_type(counts)
        return {
            "f1": every["f1-score"],
            "precision": every["precision"],
            "recall": every["recall"],
            "macro_f1": entity_scores.averages(rows)["macro avg"]["f1-score"],
            "token_accuracy": self._token_accuracy(data, outputs, labels),
            "loss": _loss(outputs),
        }

    def report(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, Any]:
        """All scores, those of each type, and how many words and entities were cut off."""
        rows = entity_scores.by_type(self._counts(data, outputs, labels))
        return {
            **self.scores(data, outputs, labels),
            "classes": rows,
            **entity_scores.averages(rows),
            **_losses_of_words(data),
        }

    def report_text(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> str:
        """Return the same as a table for people."""
        counts = self._counts(data, outputs, labels)
        rows = entity_scores.by_type(counts)
        means = {"micro avg": entity_scores.overall(counts), **entity_scores.averages(rows)}
        lost = _losses_of_words(data)
        named = {name or "(entity)": row for name, row in rows.items()}
        accuracy = self._token_accuracy(data, outputs, labels)
        return (
            f"{entity_scores.table({**named, **means})}"
            f"token accuracy {accuracy:.4f}; {lost['words_cut']:,} of {lost['words']:,} words and "
            f"{lost['entities_cut']:,} of {lost['entities']:,} entities were cut off and count as "
            "missed\n"
        )

    def predictions(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield each sentence's entities with their characters, or its tags where they stand alone.

        `probability` is that of an entity's least certain word. A sentence that came as words gets
        these back as `tokens`, with its `tags`; null for a word that was cut off.
        """
        is_plain = self._is_plain(labels)
        every_tag = self._tags_of(data, outputs, labels)
        for i, (example, tags) in enumerate(zip(data.examples, every_tag, strict=True)):
            sure = np.zeros(len(example.offsets))
            sure[_kept(data)[i]] = outputs[i][:, _PROBABILITY]
            found: dict[str, Any] = {"text": example.text}
            if not example.is_text:
                found["tokens"] = example.words
            if is_plain:
                if example.entities is not None:
                    found["label"] = [entity.type for entity in example.entities]
                found["predicted"] = tags
            else:
                if example.entities is not None:
                    found["label"] = [_shown(example, entity) for entity in example.entities]
                found["predicted"] = [
                    {
                        **_shown(example, entity),
                        "probability": round(float(sure[entity.start : entity.end].min()), 6),
                    }
                    for entity in self._entities(tags, is_plain)
                ]
                if not example.is_text:
                    found["tags"] = tags
            yield found

    def _tags_of(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[list[str | None]]:
        """The tag of every word; None where it has no token."""
        for example, words, rows in zip(data.examples, _kept(data), outputs, strict=True):
            tags: list[str | None] = [None] * len(example.offsets)
            for word, number in zip(words.tolist(), rows[:, _CLASS].tolist(), strict=True):
                tags[word] = labels[int(number)]
            yield tags

    def _entities(self, tags: Sequence[str | None], is_plain: bool) -> list[Entity]:
        if is_plain:
            return [Entity(i, i + 1, tag) for i, tag in enumerate(tags) if tag is not None]
        return tagging.strict_bio([tag or OUTSIDE for tag in tags])

    def _counts(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> entity_scores.Counts:
        is_plain = self._is_plain(labels)
        predicted = [
            self._entities(tags, is_plain) for tags in self._tags_of(data, outputs, labels)
        ]
        return entity_scores.count([e.entities or () for e in data.examples], predicted)

    def _token_accuracy(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> float:
        is_plain = self._is_plain(labels)
        pairs = [
            pair
            for example, tags in zip(
                data.examples, self._tags_of(data, outputs, labels), strict=True
            )
            for pair in zip(_tags(example, is_plain), tags, strict=True)
        ]
        return sum(gold == found for gold, found in pairs) / len(pairs)


def _of_text(found: Tagged, *, labelled: bool) -> Sentence | Problem:
    """A text with marked characters as words with entities."""
    starts = {start: i for i, (start, _) in enumerate(found.offsets)}
    ends = {end: i + 1 for i, (_, end) in enumerate(found.offsets)}
    entities = []
    for one in found.marked:
        if one.start not in starts or one.end not in ends:
            return Problem(found.line, _cuts_a_word(found.text, one))
        entities.append(Entity(starts[one.start], ends[one.end], one.label))
    return Sentence(
        found.line,
        found.text,
        tuple(found.offsets),
        tuple(entities) if labelled else None,
        is_text=found.is_text,
    )


def _cuts_a_word(text: str, one: Marked) -> str:
    shown = text[one.start : one.end]
    around = text[max(0, one.start - 10) : one.end + 10]
    return (
        f"entity {one.label!r} from {one.start} to {one.end}, {shown!r} in {around!r}, begins or "
        "ends inside a word or at a space; move it to where words begin and end"
    )


def _tags(example: Sentence, is_plain: bool) -> list[str]:
    found = example.entities or ()
    if is_plain:
        # One that was read as having no entities has nothing but O.
        return [entity.type for entity in found] or [OUTSIDE] * len(example.offsets)
    return tagging.bio(found, len(example.offsets))


def _spaced(example: Sentence) -> list[str]:
    """The words as the tokenizer shall see them: with the space before each, where there is one."""
    ends = itertools.chain([0], (end for _, end in example.offsets))
    return [
        " " * (start > before) + example.text[start:end]
        for (start, end), before in zip(example.offsets, ends, strict=False)
    ]


def _shown(example: Sentence, entity: Entity) -> dict[str, Any]:
    start, end = example.offsets[entity.start][0], example.offsets[entity.end - 1][1]
    return {"label": entity.type, "start": start, "end": end, "text": example.text[start:end]}


def _kept(data: Encoded) -> tuple[Indices, ...]:
    assert isinstance(data, EncodedSentences)
    return data.kept


def _loss(outputs: Outputs) -> float:
    """Mean negative log-likelihood of the right tags, in nats."""
    return -float(np.concatenate(outputs)[:, _GOLD].mean(dtype=np.float64))


def _losses_of_words(data: Encoded) -> dict[str, int]:
    """How many words and entities there are, and how many of them the model never saw whole."""
    found = dict.fromkeys(("words", "words_cut", "entities", "entities_cut"), 0)
    for example, kept in zip(data.examples, _kept(data), strict=True):
        has_token = np.zeros(len(example.offsets), dtype=bool)
        has_token[kept] = True
        entities = example.entities or ()
        found["words"] += len(has_token)
        found["words_cut"] += int((~has_token).sum())
        found["entities"] += len(entities)
        found["entities_cut"] += sum(not has_token[e.start : e.end].all() for e in entities)
    return found
