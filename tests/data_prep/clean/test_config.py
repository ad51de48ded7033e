"""The list of rules in a config: how it is written, and how mistakes in it are told."""

import pickle
from pathlib import Path

import pytest

from data_prep.clean import Cleaner, CleanRule, describe_rules, identity
from data_prep.clean.c4 import C4
from data_prep.clean.rules import RULES
from runtime.config import Config, ConfigError, key, load
from runtime.errors import UserError


class Preparation(Config):
    clean: tuple[CleanRule, ...] = key((), "rules, in order")
    workers: int = key(1, "processes", ge=1)


def read(tmp_path: Path, text: str) -> Preparation:
    path = tmp_path / "prep.yaml"
    path.write_text(text, encoding="utf-8")
    return load(Preparation, path)


def mistakes(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert caught.value.status == 2
    return [line.removeprefix(f"{tmp_path / 'prep.yaml'}:") for line in caught.value.lines]


def test_names_and_sections(tmp_path: Path) -> None:
    rules = read(tmp_path, "clean:\n- normalize\n- rule: c4\n  min_sentences: 3\n- c4\n").clean
    assert [rule.name for rule in rules] == ["normalize", "c4", "c4"]
    assert isinstance(rules[1], C4)
    assert rules[1].min_sentences == 3
    assert rules[2] == C4()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "- gopher_qualty",
            "2: clean.0: unknown rule 'gopher_qualty'; did you mean gopher_quality?",
        ),
        (
            "- c4\n- {rule: gopher_quality, min_wrds: 9}",
            "3: clean.1.min_wrds: unknown key; did you mean min_words?",
        ),
        ("- {min_words: 9}", "2: clean.0: rule is missing; write rule: and which one it is"),
        ("- rule: language", "2: clean.0.keep: is required and has no default"),
        (
            "- rule: c4\n  min_sentences: -1",
            "3: clean.0.min_sentences: expected greater than or equal to 0; got -1",
        ),
        ("- {rule: language, keep: xq}", "2: clean.0.keep: 'xq' is no language of the model;"),
        ("- {rule: url}", "2: clean.0: drops nothing;"),
        ("- {rule: url, domains: [a b]}", "2: clean.0.domains: 'a b' is no domain;"),
        ("- {rule: url, domains_file: /no/such}", "2: clean.0.domains_file: /no/such: the list"),
        ("- {rule: pii, ip: a@b.cd}", "2: clean.0: the mask 'a@b.cd' for ip would be masked"),
        ("- {rule: lines, drop_matching: '(a+)+b'}", "2: clean.0.drop_matching: '(a+)+b' repeats"),
        ("- {rule: lines, drop_matching: '('}", "2: clean.0.drop_matching: '(' is no regular"),
    ],
)
def test_one_line_for_a_mistake(tmp_path: Path, text: str, expected: str) -> None:
    (line,) = mistakes(tmp_path, f"clean:\n{text}\n")
    assert line.startswith(expected)


def test_every_mistake_at_once(tmp_path: Path) -> None:
    text = "clean:\n- c5\n- rule: c4\n  min_sentnces: 2\n- rule: fineweb\n  short_line: x\n"
    text += "workers: 0\n"
    found = mistakes(tmp_path, text)
    assert [line.split(": ")[:2] for line in found] == [
        ["2", "clean.0"],
        ["4", "clean.1.min_sentnces"],
        ["6", "clean.2.short_line"],
        ["7", "workers"],
    ]


def test_every_rule_and_key_is_described() -> None:
    described = describe_rules()
    assert [rule.name for rule in described] == [
        *("normalize", "html", "url", "language", "c4", "gopher_quality", "gopher_repetition"),
        *("fineweb", "lines", "pii", "chinese"),
    ]
    for rule in described:
        assert rule.meaning
        assert rule.source
        assert rule.keys
        assert all(row.meaning and row.type for row in rule.keys), rule.name


def test_identity_tells_keys_packages_and_lists_apart(tmp_path: Path) -> None:
    def of(text: str) -> dict:
        return identity(read(tmp_path, f"clean:\n{text}\n").clean)

    assert of("- c4") == of("- rule: c4")
    assert of("- c4") != of("- {rule: c4, min_sentences: 4}")
    assert of("- c4\n- fineweb") != of("- fineweb\n- c4")
    assert "ftfy" in of("- normalize")["packages"]
    assert of("- {rule: normalize, mojibake: false}")["packages"] == {}
    assert "OpenCC" in of("- {rule: chinese, script: simplified}")["packages"]
    bad = tmp_path / "bad.txt"
    bad.write_text("spam\n")
    before = of(f"- {{rule: c4, bad_words: {bad}}}")
    bad.write_text("spam\nham\n")
    assert of(f"- {{rule: c4, bad_words: {bad}}}") != before


def test_a_missing_package_and_list_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = read(tmp_path, "clean: [c4, normalize]").clean
    monkeypatch.setattr("data_prep.clean.normalize.Normalize.needs", lambda self: ("nonesuch",))
    with pytest.raises(UserError, match=r"rule normalize needs nonesuch; pip install") as caught:
        Cleaner(rules)
    assert caught.value.status == 2
    with pytest.raises(UserError, match="cannot be read"):
        Cleaner([C4.model_construct(bad_words=str(tmp_path / "gone"))])


def test_a_cleaner_travels_and_remembers_nothing() -> None:
    cleaner = Cleaner(
        [rule() for rule in RULES if rule.__name__ not in ("Language", "Url", "Html")]
    )
    text = "One sentence is here. " * 3 + "\n" + "mail me@example.org or call. " * 3
    first = cleaner(text)
    cleaner("something else entirely")
    assert cleaner(text) == first == pickle.loads(pickle.dumps(cleaner))(text)


def test_order_and_the_rules_that_changed_something(tmp_path: Path) -> None:
    text = "Ｆｕｌｌ width. Two. Three. Four. Five here.\r\nmenu\n"
    normal = "- {rule: normalize, form: NFKC}\n"
    text_after, dropped, changed = Cleaner(read(tmp_path, f"clean:\n{normal}- c4\n").clean)(text)
    assert text_after == "Full width. Two. Three. Four. Five here."
    assert (dropped, changed) == (None, ["normalize", "c4"])
    rules = read(tmp_path, f"clean:\n{normal}- {{rule: c4, min_sentences: 6}}\n- fineweb\n").clean
    text_after, dropped, changed = Cleaner(rules)(text)
    assert (text_after, changed) == (None, ["normalize"])
    assert dropped == ("c4", "few_sentences", "sentences 5 < 6")


def test_nothing_left_is_a_reason() -> None:
    assert Cleaner([C4(min_sentences=0)])("menu\nhome")[1] == ("c4", "nothing_left", "characters 0")
    assert Cleaner([])("as it is") == ("as it is", None, [])
