import random
from collections import Counter

import pytest

from finetune.config import FinetuneConfig, check, read_sets
from finetune.sampling import draw, draw_per_class
from finetune.tasks.classification import TextExample
from runtime.config import ConfigError, load
from tests.finetune.toys import config_file


def examples(**counts: int) -> list[TextExample]:
    """So many different texts of every class, mixed."""
    rows = [(f"{name} {i}", name) for name, count in counts.items() for i in range(count)]
    random.Random(0).shuffle(rows)
    return [TextExample(line, text, name) for line, (text, name) in enumerate(rows, start=1)]


def strata(found) -> Counter:
    return Counter(example.stratum for example in found)


def test_every_class_has_so_many_and_a_small_one_all_it_has():
    found = draw_per_class(examples(a=50, b=20, c=3), 10, seed=1)
    assert strata(found) == {"a": 10, "b": 10, "c": 3}
    assert [e.line for e in found] == sorted(e.line for e in found)


def test_the_draw_depends_on_the_seed_and_the_texts_alone():
    rows = examples(a=50, b=50)
    first = draw_per_class(rows, 10, seed=1)
    assert {e.text for e in draw_per_class(rows[::-1], 10, seed=1)} == {e.text for e in first}
    assert {e.text for e in draw_per_class(rows, 10, seed=2)} != {e.text for e in first}
    assert {e.text for e in first} < {e.text for e in draw_per_class(rows, 20, seed=1)}


def test_copies_count_as_one():
    rows = examples(a=5, b=5)
    assert len(draw_per_class([*rows, *rows, *rows], 4, seed=0)) == 8
    assert len({e.text for e in draw([*rows, *rows], 10, seed=0)}) == 10


@pytest.mark.parametrize("count", [3, 4, 10, 100, 156, 160])
def test_a_draw_keeps_the_shares_of_the_classes(count):
    rows = examples(a=100, b=50, c=10)
    found = strata(draw(rows, count, seed=3))
    assert found.total() == count
    for name, size in (("a", 100), ("b", 50), ("c", 10)):
        assert found[name] >= 1
        assert abs(found[name] - count * size / 160) <= 1


def test_fewer_than_classes_are_any():
    found = draw(examples(a=5, b=5, c=5), 2, seed=0)
    assert len(found) == 2
    assert {e.text for s in range(60) for e in draw(examples(a=5, b=5, c=5), 2, seed=s)} == {
        f"{name} {i}" for name in "abc" for i in range(5)
    }


def test_a_run_learns_from_what_is_drawn_and_dev_is_a_part_of_it(tmp_path):
    path = config_file(tmp_path)
    sets, problems = read_sets(load(FinetuneConfig, path, ["data.examples_per_class=5"]))
    assert not problems
    assert strata(sets.train) == {"cat": 5, "cow": 5, "dog": 5}
    assert len(sets.dev) == 30
    config = load(FinetuneConfig, path, ["data.examples=40", "data.dev=null"])
    sets, problems = read_sets(config)
    assert not problems
    assert len(sets.train) + len(sets.dev) == 40
    assert strata(sets.train).keys() == strata(sets.dev).keys() == {"cat", "cow", "dog"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.examples=1000"], "data.examples: 1000 is more than the 90 different examples"),
        (["data.examples=9", "data.examples_per_class=3"], "one of them"),
    ],
)
def test_wrong_draws_are_one_line(tmp_path, overrides, message):
    with pytest.raises(ConfigError) as raised:
        load(FinetuneConfig, config_file(tmp_path), overrides, lambda c: check(c, 1))
    assert message in str(raised.value)
    assert len(raised.value.lines) == 1


def test_texts_without_classes_are_copies_with_the_same_answer_only():
    from finetune.conversations import Conversation, Turn

    asked = Turn("user", "q")
    found = [Conversation(n, (asked, Turn("assistant", str(n % 7)))) for n in range(10)]
    assert len({e.answer for e in draw(found, 5, seed=1)}) == 5
    assert len(draw(found, 7, seed=1)) == 7
