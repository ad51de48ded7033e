"""Tags and the entities they mark, against seqeval in its strict mode."""

import random

import pytest
from seqeval.metrics import classification_report
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from finetune.tasks import entity_scores, tagging, task_of
from finetune.tasks.config import TaskKeys
from finetune.tasks.tagging import Broken, Census, Entity

LETTERS = {"bioes": "BIES", "bmes": "BMES", "bilou": "BILU"}


def by_seqeval(tags, scheme):
    (found,) = Entities([tags], scheme).entities
    return sorted(Entity(e.start, e.end, e.tag) for e in found)


def draw_entities(draw, words=12):
    found, at = [], 0
    while at < words:
        length = draw.randint(1, 4)
        if draw.random() < 0.5 and at + length <= words:
            found.append(Entity(at, at + length, draw.choice(["X", "Y-Z"])))
        at += length
    return found


def written(found, letters, words=12):
    begin, inside, end, single = letters
    tags = ["O"] * words
    for start, after, name in found:
        tags[start:after] = [f"{inside}-{name}"] * (after - start)
        tags[start], tags[after - 1] = f"{begin}-{name}", f"{end}-{name}"
        if after - start == 1:
            tags[start] = f"{single}-{name}"
    return tags


@pytest.mark.parametrize("letters", LETTERS.values())
def test_bioes_and_its_dialects_are_read(letters):
    draw = random.Random(1)
    for _ in range(200):
        found = draw_entities(draw)
        tags = written(found, letters)
        assert tagging.entities(tags, "bioes") == (found, [])
        if letters != LETTERS["bmes"]:
            theirs = IOBES if letters == LETTERS["bioes"] else BILOU
            assert by_seqeval(tags, theirs) == found


def test_iob1_is_read():
    draw = random.Random(2)
    for _ in range(200):
        found = draw_entities(draw)
        tags = ["O"] * 12
        for start, end, name in found:
            tags[start:end] = [f"I-{name}"] * (end - start)
            touches = any(e.end == start and e.type == name for e in found)
            tags[start] = f"{'B' if touches else 'I'}-{name}"
        assert by_seqeval(tags, IOB1) == found
        assert tagging.entities(tags, "iob1") == (found, [])


def test_bio_is_written_and_read():
    draw = random.Random(3)
    for _ in range(200):
        found = draw_entities(draw)
        tags = tagging.bio(found, 12)
        assert tags == written(found, "BIIB")
        assert tagging.entities(tags, "bio") == (found, [])
        assert tagging.strict_bio(tags) == by_seqeval(tags, IOB2) == found


def test_what_a_model_says_is_read_as_strictly_as_by_seqeval():
    draw = random.Random(4)
    broken = 0
    for _ in range(3000):
        tags = draw.choices(["O", "B-X", "I-X", "B-Y", "I-Y"], k=8)
        assert tagging.strict_bio(tags) == by_seqeval(tags, IOB2), tags
        broken += bool(tagging.entities(tags, "bio")[1])
    assert broken > 1000


@pytest.mark.parametrize(
    ("tags", "scheme", "entities", "broken"),
    [
        ("O I-X I-X", "bio", [(1, 3, "X")], [(1, "'I-X' comes after 'O'")]),
        ("I-X O", "bio", [(0, 1, "X")], [(0, "'I-X' comes after the start of the sentence")]),
        ("B-X I-Y", "bio", [(0, 1, "X"), (1, 2, "Y")], [(1, "'I-Y' comes after 'B-X'")]),
        ("B-X O", "bioes", [(0, 1, "X")], [(0, "'B-X' is followed by 'O', not ended")]),
        ("B-X I-X", "bioes", [(0, 2, "X")], [(1, "'I-X' is followed by the end of the sentence")]),
        ("B-X S-X", "bioes", [(0, 1, "X"), (1, 2, "X")], [(0, "'B-X' is followed by 'S-X'")]),
        ("O E-X", "bioes", [(1, 2, "X")], [(1, "'E-X' comes after 'O', so nothing begins it")]),
        ("S-X M-X E-X", "bioes", [(0, 1, "X"), (1, 3, "X")], [(1, "'M-X' comes after 'S-X'")]),
    ],
)
def test_contradictions_are_told_and_read_leniently(tags, scheme, entities, broken):
    found, problems = tagging.entities(tags.split(), scheme)
    assert found == entities
    assert [p.word for p in problems] == [word for word, _ in broken]
    for problem, (_, reason) in zip(problems, broken, strict=True):
        assert isinstance(problem, Broken)
        assert problem.reason.startswith(reason)


def test_tags_without_types_segment_words():
    found, broken = tagging.entities(list("BESBMME"), "bioes")
    assert (found, broken) == ([Entity(0, 2, ""), Entity(2, 3, ""), Entity(3, 7, "")], [])
    assert tagging.bio(found, 7) == list("BIBBIII")
    assert tagging.strict_bio(list("BIBBIII")) == found


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        (["B-X I-X O", "B-X"], "bio"),
        (["I-X I-X O I-Y", "I-X B-X"], "iob1"),
        (["B-X I-X O I-Y"], "bio"),  # broken, and told
        (["B-X E-X O", "S-X"], "bioes"),
        (["B M M E S"], "bioes"),
        (["DET NOUN VERB", "O O"], "tags"),
        (["O O"], "bio"),
        (["B-X NOUN"], "bio"),
    ],
)
def test_a_scheme_is_told_from_its_tags(sentences, scheme):
    census = Census()
    for tags in sentences:
        census.add(tags.split())
    assert census.scheme == scheme


def test_scores_are_those_of_seqeval():
    draw = random.Random(5)
    gold = [tagging.bio(draw_entities(draw), 12) for _ in range(60)]
    found = [
        [draw.choice(["O", "B-X", "I-X", "B-W"]) if draw.random() < 0.2 else tag for tag in tags]
        for tags in gold
    ]
    counts = entity_scores.count(
        [tagging.entities(tags, "bio")[0] for tags in gold],
        [tagging.strict_bio(tags) for tags in found],
    )
    theirs = classification_report(
        gold, found, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    rows = entity_scores.by_type(counts)
    ours = {
        **rows,
        "micro avg": entity_scores.overall(counts),
        **entity_scores.averages(rows),
    }
    assert ours.keys() == theirs.keys() == {"W", "X", "Y-Z", "micro avg", "macro avg",
                                            "weighted avg"}  # fmt: skip
    for name, row in theirs.items():
        assert ours[name] == pytest.approx(row), name
    assert 0.3 < ours["micro avg"]["f1-score"] < 0.95


def test_words_to_predict_on_need_no_tag_column(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("Ada\nlebt\n")
    keys = TaskKeys(kind="token", tag_column=4)
    (sentence,) = task_of(keys).stream(path, labelled=False)
    assert sentence.text == "Ada lebt"
    (problem, _) = task_of(keys).stream(path)
    assert "a word without a tag" in problem.text
