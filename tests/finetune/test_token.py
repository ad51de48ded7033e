"""Tagging: what files say, which token carries a tag, and how what was cut is counted."""

import gzip

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from finetune.tasks import task_of
from finetune.tasks.config import TaskKeys
from finetune.tokenizer import TextTokenizer
from model import build, preset
from model.hf import read_config
from runtime.errors import UserError
from tests.finetune.toys import (
    byte_tokenizer,
    checkpoint,
    write_jsonl,
)

GERMAN = [("Frau", "O"), ("Ada", "B-per"), ("King", "I-per"), ("lebt", "O"), ("in", "O"),
          ("Bonn", "B-loc")]  # fmt: skip


def task(**keys):
    return task_of(TaskKeys(kind="token", **keys))


def tags_of(sentence):
    tags = ["O"] * len(sentence.words)
    for start, end, name in sentence.entities:
        tags[start:end] = [f"I-{name}"] * (end - start)
        tags[start] = f"B-{name}"
    return tags


def read(path, content, **keys):
    path.write_text(content, encoding="utf-8")
    return task(**keys).read(path)


# --- files


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(f"{w}\t{t}" for w, t in GERMAN),
        "\n\n\n" + "\n".join(f"{w} {t}" for w, t in GERMAN) + "\n\t\n\ufeff\n",
        "\ufeff" + "\r\n".join(f"{w}\t{t}" for w, t in GERMAN) + "\r\n \r\n",
        "-DOCSTART- -X- -X- O\n\n" + "\n".join(f"{w} NN I-NP {t}" for w, t in GERMAN),
        "# id 7 domain=x\n" + "\n".join(f"{w} _ _ {t}" for w, t in GERMAN) + "\n\n# id 8 y=z\n",
    ],
)
def test_columns(tmp_path, content):
    (sentence,), problems = read(tmp_path / "a.conll", content)
    assert problems == []
    assert list(zip(sentence.words, tags_of(sentence), strict=True)) == GERMAN
    assert sentence.text == "Frau Ada King lebt in Bonn"


def test_columns_can_be_chosen_and_packed(tmp_path):
    content = "\n".join(f"{i}\t{w}\tX\t{t}\t_" for i, (w, t) in enumerate(GERMAN, start=1))
    with gzip.open(tmp_path / "a.conllu.gz", "wt") as stream:
        stream.write(f"# text = Frau Ada King\n{content}\n\n")
    found, problems = task(token_column=2, tag_column=4).read(tmp_path / "a.conllu.gz")
    assert problems == []
    assert tags_of(found[0]) == [t for _, t in GERMAN]


def test_a_hash_is_a_word_where_it_has_a_tag(tmp_path):
    (sentence,), _ = read(tmp_path / "a.txt", "# O\n# O\nx B-a\n")
    assert sentence.words == ["#", "#", "x"]


def test_json_lines_of_words_and_of_text_say_the_same(tmp_path):
    words, tags = (list(column) for column in zip(*GERMAN, strict=True))
    text = "Frau Ada King lebt in Bonn"
    marked = [{"start": 5, "end": 13, "label": "per"}, {"start": 22, "end": 26, "label": "loc"}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"tokens": words, "tags": tags}])
    other = write_jsonl(tmp_path / "b.jsonl", [{"text": text, "entities": marked}])
    (one,), problems = task().read(path)
    (two,), more = task().read(other)
    assert problems == more == []
    assert (one.words, one.entities, one.text) == (two.words, two.entities, two.text)
    assert (one.is_text, two.is_text) == (False, True)
    triples = write_jsonl(tmp_path / "c.jsonl", [{"text": text, "label": [[5, 13, "per"]]}])
    assert task(entities_key="label").read(triples).examples[0].entities == ((1, 3, "per"),)


def test_chinese_text_is_cut_into_characters_and_joined_without_spaces(tmp_path):
    text = "我爱iPhone 7和東京。"
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text": text, "entities": [{"start": 11, "end": 13, "label": "l"}]}]
    )
    (sentence,), problems = task().read(path)
    assert problems == []
    assert sentence.words == ["我", "爱", "iPhone", "7", "和", "東", "京", "。"]
    assert sentence.entities == ((5, 7, "l"),)
    (joined,), _ = read(tmp_path / "a.txt", "".join(f"{w} O\n" for w in sentence.words))
    assert joined.text == text


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("a O\nb X-y\nc B-y\n", 2, "tag 'X-y' does not say where an entity begins"),
        ("a O\nb\n", 2, "1 columns, but the first line has 2"),
        ("a\nb\n", 1, "a word without a tag"),
        ("a\tO\n\tO\n", 2, "no word before the tag"),
        ("a\tO\nb\t\n", 2, "no tag behind 'b'"),
        ("a O\nb B-x\n\nc O\nd I-x\n", 5, "tag 'I-x' comes after 'O', so nothing begins it"),
        ("a B-x\nb I-y\n\nc E-x\n", 1, "tag 'B-x' is followed by 'I-y', not ended (read as bioes)"),
    ],
)
def test_wrong_columns_name_file_and_line(tmp_path, content, line, message):
    _, problems = read(tmp_path / "a.txt", content)
    assert problems[0].startswith(f"{tmp_path / 'a.txt'}:{line}: {message}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "tags": [3]}, "'tags' must be a list of tags; write the names"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words but 1 tags; give every word one"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "'tokens' must be a list of words, none of"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "'tokens' must be a list of words"),
        ({"tokens": ["a"]}, "no key 'tags'"),
    ],
)
def test_wrong_json_of_words_names_the_line(tmp_path, row, message):
    good = {"tokens": ["a"], "tags": ["B-x"]}
    found, (problem,) = task().read(write_jsonl(tmp_path / "a.jsonl", [good, row, good]))
    assert problem.startswith(f"{tmp_path / 'a.jsonl'}:2: {message}")
    assert len(found) == 2


def entity(start, end, label="x"):
    return {"start": start, "end": end, "label": label}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "ab cd", "entities": [entity(1, 5)]},
            "entity 'x' from 1 to 5, 'b cd' in 'ab",
        ),
        ({"text": "ab cd", "entities": [entity(0, 3)]}, "entity 'x' from 0 to 3, 'ab ' in"),
        (
            {"text": "ab cd", "entities": [entity(3, 6)]},
            "entity 'x' from 3 to 6 is not in the",
        ),
        (
            {"text": "ab cd", "entities": [entity(3, 3)]},
            "entity 'x' from 3 to 3 is not in the",
        ),
        (
            {"text": "ab cd", "entities": [entity(3, 5), entity(0, 5, "y")]},
            "entity 'y' from 0 to 5 overlaps 'x' from 3 to 5",
        ),
        ({"text": "ab", "entities": [{"start": 0, "end": 2}]}, "'entities' must be a list of"),
        ({"text": "ab", "entities": {"x": 1}}, "'entities' must be a list of entities"),
        ({"text": " ", "entities": []}, "'text' must be text, and hold at least a word"),
        ({"text": "ab"}, "no key 'entities'"),
    ],
)
def test_wrong_entities_name_the_line(tmp_path, row, message):
    good = {"text": "ab", "entities": [entity(0, 2)]}
    found, (problem,) = task().read(write_jsonl(tmp_path / "a.jsonl", [good, row, good]))
    assert problem.startswith(f"{tmp_path / 'a.jsonl'}:2: {message}")
    assert len(found) == 2


def test_contradictory_tags_are_read_leniently_on_demand(tmp_path):
    (found,), problems = read(tmp_path / "a.txt", "a B-x\nb I-y\nc I-y\n", repair_tags=True)
    assert problems == []
    assert found.entities == ((0, 1, "x"), (1, 3, "y"))


def test_tables_are_no_columns(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv: words with tags are read from columns"):
        read(tmp_path / "a.csv", "a,O\n")


def test_tags_of_the_model_and_of_other_sets(tmp_path):
    train, _ = read(tmp_path / "a.txt", "a B-x\nb I-x\n\nc B-b\n")
    labels = task().label_names(train)
    assert labels == ["O", "B-b", "I-b", "B-x", "I-x"]
    assert task().check("train", train, labels) == []
    dev, _ = read(tmp_path / "b.txt", "a B-z\n\nb O\nc B-x\n\nc B-q\n")
    (problem,) = task().check("dev", dev, labels)
    assert problem.startswith("labels that train never has: 'z' (line 1), 'q' (line 6); add")
    nothing, _ = read(tmp_path / "c.txt", "a O\n")
    (problem,) = task().check("train", nothing, task().label_names(nothing))
    assert problem == "every word has the tag 'O'; a second one is needed"


def test_tags_that_stand_alone(tmp_path):
    train, problems = read(tmp_path / "a.txt", "a DET\nb NOUN\nc VERB\n")
    assert problems == []
    assert task().label_names(train) == ["DET", "NOUN", "VERB"]
    dev, _ = read(tmp_path / "b.txt", "a DET\nb O\n")
    assert (
        task().check("dev", dev, ["DET", "NOUN"])[0].startswith("labels that train never has: 'O'")
    )
    nothing, _ = read(tmp_path / "c.txt", "a O\nb O\n")  # tells neither of the two
    assert task().check("test", nothing, ["DET", "O"]) == []
    assert "never has: 'O'" in task().check("test", nothing, ["DET", "NOUN"])[0]
    forced, _ = read(tmp_path / "a.txt", "a B-x\nb I-x\n", scheme="tags")
    assert task(scheme="tags").label_names(forced) == ["B-x", "I-x"]


# --- tokens


def piece_tokenizer():
    """BERT-like: words in pieces of up to three characters, [CLS] and [SEP] around them."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["ada", "kin", "bon", "lin", "in"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|endoftext|>", "中", "国", *letters, *pieces]
    vocab += [f"##{piece}" for piece in [*letters, *pieces]]
    numbers = {token: i for i, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(vocab[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def text_tokenizer(directory, tokenizer, max_length=None):
    directory = checkpoint(directory, tokenizer, "bert")
    return TextTokenizer(directory, read_config(directory), max_length)


def encoded(tokenizer, words, tags, **keys):
    from finetune.tasks.tagged_files import joined
    from finetune.tasks.tagging import entities
    from finetune.tasks.token import Sentence

    text, offsets = joined(words)
    sentence = Sentence(1, text, tuple(offsets), tuple(entities(tags, "bio")[0]))
    labels = ["O", "B-x", "I-x"]
    return task(**keys).encode([sentence], labels, tokenizer), labels


def test_a_label_stands_on_the_first_piece_of_each_word(tmp_path):
    words = ["Adaking", "xx", "\u200b", "Bonn", "中国", "a-b"]
    tags = ["B-x", "O", "O", "B-x", "I-x", "O"]
    ours = text_tokenizer(tmp_path / "base", piece_tokenizer())
    data, labels = encoded(ours, words, tags)
    theirs = PreTrainedTokenizerFast(tokenizer_object=piece_tokenizer())(
        words, is_split_into_words=True
    )
    assert data.tokens.tolist() == theirs["input_ids"]
    expected, before = [], None
    for word in theirs.word_ids():
        is_first = word is not None and word != before
        expected.append(labels.index(tags[word]) if is_first else -100)
        before = word
    assert data.labels.tolist() == expected
    assert data.kept[0].tolist() == [0, 1, 3, 4, 5]  # of a zero-width space nothing is kept
    assert data.counts(np.array([0])) == 5
    assert (data.labels == -100).sum() > 5


def test_words_of_byte_level_tokenizers_begin_with_their_space(tmp_path):
    directory = checkpoint(tmp_path / "base", byte_tokenizer(), "gpt2")
    ours = TextTokenizer(directory, read_config(directory))
    data, _ = encoded(ours, ["ab", "cd", "中", "国"], ["O", "B-x", "O", "B-x"])
    whole = byte_tokenizer().encode("ab cd中国")
    assert data.tokens.tolist() == whole.ids
    assert np.flatnonzero(data.labels >= 0).tolist() == [0, 2, 5, 8]


def test_special_tokens_in_a_text_are_text(tmp_path):
    ours = text_tokenizer(tmp_path / "base", piece_tokenizer())
    data, _ = encoded(ours, ["[SEP]", "ada"], ["O", "B-x"])
    assert data.tokens.tolist().count(3) == 1


# --- scores


def answer(data, labels, tags_of_all):
    """What a model would have to say for these tags, all with the probability 0.75."""
    found = []
    for words, tags in zip(data.kept, tags_of_all, strict=True):
        rows = [[labels.index(tags[w]), 0.75, np.log(0.5)] for w in words]
        found.append(np.array(rows, dtype=np.float32).reshape(len(words), 3))
    return found


def test_what_is_cut_counts_as_missed(tmp_path):
    ours = text_tokenizer(tmp_path / "base", piece_tokenizer(), max_length=6)
    words, tags = ["a", "b", "c", "d", "e", "f"], ["O", "B-x", "I-x", "O", "O", "B-x"]
    data, labels = encoded(ours, words, tags)
    assert data.truncated == 1
    assert data.kept[0].tolist() == [0, 1, 2, 3]
    found = answer(data, labels, [tags])
    scores = task().scores(data, found, labels)
    cut = [*tags[:4], "O", "O"]
    assert scores["recall"] == 0.5
    assert scores["precision"] == 1
    assert scores["f1"] == pytest.approx(f1_score([tags], [cut], mode="strict", scheme=IOB2))
    assert scores["token_accuracy"] == pytest.approx(4 / 6)
    assert scores["loss"] == pytest.approx(np.log(2))
    report = task().report(data, found, labels)
    counted = [report[k] for k in ("words", "words_cut", "entities", "entities_cut")]
    assert counted == [6, 2, 2, 1]
    assert "2 of 6 words and 1 of 2 entities were cut" in task().report_text(data, found, labels)
    (row,) = task().predictions(data, found, labels)
    assert row["tags"] == [*tags[:4], None, None]
    assert row["predicted"] == [
        {"label": "x", "start": 2, "end": 5, "text": "b c", "probability": 0.75}
    ]
    assert [e["text"] for e in row["label"]] == ["b c", "f"]


def test_the_models_answers_are_kept_for_each_word(tmp_path):
    ours = text_tokenizer(tmp_path / "base", piece_tokenizer())
    data, _ = encoded(ours, ["adaking", "b", "c"], ["B-x", "I-x", "O"])
    torch.manual_seed(0)
    config = preset("bert-tiny", n_layers=1, d_model=32, n_heads=2, d_ff=64, vocab_size=100)
    net = build(config.model_copy(update={"num_labels": 3}), head="token").eval()
    batch = {k: torch.from_numpy(v) for k, v in data.batch(np.array([0]), 0).items()}
    with torch.no_grad():
        output = net(**batch)
        (rows,) = task().infer(net, batch)
    assert rows.shape == (3, 3)
    assert -rows[:, 2].mean() == pytest.approx(float(output.loss), rel=1e-5)
    at = np.flatnonzero(data.labels >= 0)
    best = output.logits[0, at].softmax(-1).max(-1)
    assert rows[:, 0].tolist() == best.indices.tolist()
    assert rows[:, 1] == pytest.approx(best.values.numpy())
