import numpy as np
import pytest

from finetune.report.baseline import Baseline, features_of, is_unspaced

CHINESE = ["今天天气很好", "这部电影真难看", "服务态度非常好", "房间太小了，不满意"]


def test_the_script_chooses_the_features():
    assert is_unspaced(CHINESE)
    assert not is_unspaced(["a good film", "une étoile", "добрый день"])
    assert not is_unspaced(["12 34", ""])
    grams = set(features_of(CHINESE).fit(CHINESE).get_feature_names_out())
    assert {"电", "电影", "部电影"} <= grams
    assert max(map(len, grams)) == 3
    english = features_of(["a good film"]).fit(["a good film"]).get_feature_names_out()
    words = {name.partition("__")[2] for name in english if name.startswith("tfidfvectorizer-1")}
    assert words == {"a", "good", "film", "a good", "good film"}


def test_it_learns_what_words_tell_and_gives_probabilities():
    draw = np.random.default_rng(0)
    signs = ["miaow", "woof", "moo"]
    classes = draw.integers(0, 3, 200)
    texts = [" ".join([*draw.choice(list("abcdefgh"), 6), signs[c]]) for c in classes]
    model = Baseline(texts[:100], classes[:100], 3)
    found = model.log_probabilities(texts[100:])
    assert found.shape == (100, 3)
    assert np.exp(found).sum(1) == pytest.approx(np.ones(100), abs=1e-5)
    assert (found.argmax(1) == classes[100:]).mean() > 0.95
    assert (found.argmax(1) == draw.permutation(classes[100:])).mean() < 0.6


def test_a_class_without_examples_is_never_chosen():
    found = Baseline(["a b", "c d", "a e", "c f"], np.array([0, 2, 0, 2]), 4).log_probabilities(
        ["a a", "c c"]
    )
    assert found.argmax(1).tolist() == [0, 2]
    assert np.isfinite(found).all()
    assert found[:, [1, 3]].max() < -80
