import pytest

from finetune.config import FinetuneConfig
from finetune.search.plot import picture
from finetune.search.results import table
from finetune.search.space import read_space
from finetune.search.study import Row, Settings, Study
from runtime.config import ConfigError
from runtime.errors import UserError


def space(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(path, FinetuneConfig)


GOOD = """\
optim.lr: {low: 1e-5, high: 1e-3, log: true}
batch.global_batch_size: {low: 8, high: 32, step: 8}
optim.betas: [[0.9, 0.98], [0.9, 0.999]]
transfer.layer_decay: {low: 0.5, high: 1}
"""


def test_ranges_and_choices_are_read(tmp_path):
    lr, size, betas, decay = space(tmp_path, GOOD)
    assert (lr.low, lr.high, lr.log, lr.is_whole) == (1e-5, 1e-3, True, False)
    assert (size.step, size.is_whole) == (8, True)
    assert [betas.value(c) for c in betas.choices] == [[0.9, 0.98], [0.9, 0.999]]
    assert not decay.is_whole


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("optim.lrr: [1, 2]", "did you mean optim.lr"),
        ("optim.lr: [1e-3]", "at least two choices, got 1"),
        ("optim.lr: 1e-3", r"expected \{low"),
        ("optim.lr: {low: 1e-3}", r"expected \{low"),
        ("optim.lr: {low: 1, high: 2, upper: 3}", r"expected \{low"),
        ("optim.lr: {low: a, high: 2}", "low: expected a number, got 'a'"),
        ("optim.lr: {low: 2, high: 1}", "low 2 is not less than high 1"),
        ("optim.lr: {low: 0, high: 1, log: true}", "above 0, got 0"),
        ("optim.lr: {low: 1, high: 2, log: 3}", "log: expected true or false, got 3"),
        ("optim.lr: {low: 1, high: 2, log: true, step: 1}", "don't go together"),
        ("optim.lr: {low: 1, high: 2, step: 0}", "step: expected more than 0, got 0"),
        ("data.train: [a, b]", "is not searched over"),
        ("", "holds no key"),
    ],
)
def test_mistakes_are_told(tmp_path, line, told):
    with pytest.raises(ConfigError, match=told):
        space(tmp_path, line)


def study(tmp_path, name="study.db", text=GOOD, **settings):
    return Study(tmp_path / name, space(tmp_path, text), {"config": {}}, Settings(**settings))


def score_of(values):
    return -abs(values["optim.lr"] - 3e-4) - values["batch.global_batch_size"] / 1e6


def tried(found, count):
    for _ in range(count):
        trial = found.next()
        trial.tell("complete", score_of(trial.values), 1.0)
    return [row.values for row in found.rows()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_an_interrupted_search_draws_what_a_straight_one_does(tmp_path, sampler):
    straight = tried(study(tmp_path, "a.db", sampler=sampler), 6)
    tried(study(tmp_path, "b.db", sampler=sampler), 4)
    assert tried(study(tmp_path, "b.db", sampler=sampler), 2) == straight
    assert len({str(values) for values in straight}) == 6
    other = tried(study(tmp_path, "c.db", sampler=sampler, seed=1), 2)
    assert other != straight[:2]
    for values in straight:
        assert 1e-5 <= values["optim.lr"] <= 1e-3
        assert values["batch.global_batch_size"] in (8, 16, 24, 32)
        assert values["optim.betas"] in ([0.9, 0.98], [0.9, 0.999])


def test_a_trial_that_was_cut_is_taken_up(tmp_path):
    first = study(tmp_path)
    begun = first.next()
    begun.is_hopeless([0.1, 0.2])
    again = study(tmp_path).next()
    assert (again.number, again.values) == (begun.number, begun.values)
    again.is_hopeless([0.1, 0.2, 0.3])
    again.tell("complete", 0.3, 2.0)
    (row,) = study(tmp_path).rows()
    assert (row.state, row.score, row.evaluations) == ("complete", 0.3, 3)


def test_the_median_rule_ends_a_trial_far_behind(tmp_path):
    found = study(tmp_path)
    for score in (0.7, 0.8, 0.9, 0.75):
        trial = found.next()
        assert not trial.is_hopeless([score])
        assert not trial.is_hopeless([score, score])
        trial.tell("complete", score, 1.0)
    bad, good = found.next(), None
    assert not bad.is_hopeless([0.1])  # the first evaluation says little
    assert bad.is_hopeless([0.1, 0.2])
    assert not bad.is_hopeless([0.1, 0.2])  # nothing new since
    bad.tell("pruned", None, 1.0)
    good = found.next()
    assert not good.is_hopeless([0.85, 0.85])
    assert [row.state for row in found.rows()][4:] == ["pruned", "running"]
    assert found.best().score == 0.9


def test_another_space_or_config_is_refused(tmp_path):
    study(tmp_path)
    with pytest.raises(UserError, match="begun with another space"):
        study(tmp_path, text="optim.lr: [1e-4, 1e-3]")
    with pytest.raises(UserError, match="another config"):
        Study(tmp_path / "study.db", space(tmp_path, GOOD), {"config": {"epochs": 1}}, Settings())


def test_the_table_begins_with_the_best_and_shows_losses_as_they_are(tmp_path):
    rows = [
        Row(0, "complete", -0.7, {"optim.lr": 1e-4}, 2, 1.0, ""),
        Row(1, "failed", None, {"optim.lr": 1.0}, 0, 1.0, "training diverged"),
        Row(2, "complete", -0.4, {"optim.lr": 3e-4}, 2, 1.0, ""),
        Row(3, "pruned", -0.9, {"optim.lr": 1e-5}, 1, 1.0, ""),
    ]
    lines = table(rows, "loss").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["2", "0", "3", "1"]
    assert "0.4000" in lines[2]
    assert "-0.4" not in lines[2]
    assert "failed (training diverged)" in lines[-1]


def test_the_picture_has_every_trial_with_a_score_in_every_panel():
    from xml.etree import ElementTree

    rows = [
        Row(i, "complete", s, {"optim.lr": 10.0**-i, "optim.name": n}, 2, 1.0, "")
        for i, (s, n) in enumerate([(0.5, "adamw"), (0.9, "muon"), (0.7, "<&>")], start=1)
    ]
    root = ElementTree.fromstring(picture(rows, "accuracy"))
    space = {"s": "http://www.w3.org/2000/svg"}
    assert len(root.findall(".//s:circle", space)) == 3 * 3
    panels = root.findall("s:g", space)
    heights = [float(c.get("cy")) for c in panels[0].findall("s:circle", space)]
    assert heights[1] < heights[2] < heights[0]  # the better, the higher
    assert len(root.findall(".//s:polyline", space)) == 1
    assert ElementTree.fromstring(picture([], "loss")) is not None
