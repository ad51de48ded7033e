"""The data card: what it says is what the files hold; the page is sound whatever a text says."""

import struct
from html.parser import HTMLParser

import numpy as np
import orjson

from data_prep import Shards
from data_prep.__main__ import main
from data_prep.card import make_card
from data_prep.card_page import card_page
from tests.data_prep.samples import make_texts, write_jsonl

HOSTILE = "<script>alert('&amp;')</script></pre>"


def prepared(tmp_path, run):
    texts = [*make_texts(80), HOSTILE, HOSTILE, "twice the same", "twice the same"]
    path = write_jsonl(tmp_path / "in & out.jsonl", texts)
    with path.open("ab") as stream:
        stream.write(b'{"text": "<b>\n')
    run(
        path,
        split__valid=0.2,
        dedup__exact=True,
        max_bad_fraction=0.1,
        licences=[{"path": str(tmp_path), "licence": "CC0"}],
    )
    return path


def test_the_card_says_what_is_there(tmp_path, run):
    path = prepared(tmp_path, run)
    card = make_card(tmp_path / "out")
    shards = Shards(tmp_path / "out")
    lengths = [len(document) for document in shards]
    split = card.splits["train"]
    assert split.lengths["p100"] == max(lengths)
    assert split.lengths["p50"] == np.percentile(lengths, 50, method="lower")
    assert sum(count for _, count in split.histogram) == len(shards)
    below = sum(count for top, count in split.histogram if top <= 32)
    assert below == sum(length <= 32 for length in lengths)
    assert abs(sum(split.languages.values()) - 1) < 1e-9
    assert card.sources[0]["licence"] == "CC0"
    assert card.dropped == {"duplicate/exact": 2, "invalid_json": 1}
    examples = card.examples["duplicate/exact"]
    assert [(e.file, e.line) for e in examples] == [(str(path), 82), (str(path), 84)]
    assert examples[0].excerpt == HOSTILE
    assert card.quarantined[0]["line"] == 85


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_texts_as_text(tmp_path, run):
    prepared(tmp_path, run)
    parser = Tags()
    parser.feed(card_page(make_card(tmp_path / "out")))
    assert "script" not in parser.tags
    assert HOSTILE in "".join(parser.words)
    assert {"table", "h2", "pre"} <= parser.tags


def test_the_command_writes_each_form(tmp_path, run, capsys):
    prepared(tmp_path, run)
    out = str(tmp_path / "out")
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    told = capsys.readouterr().out
    assert "dropped, duplicate/exact: 2" in told
    assert "in & out.jsonl:82: similarity 1.00, repeats document" in told
    assert main(["inspect", out, "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["documents"] == 82
    page = tmp_path / "card.html"
    assert main(["inspect", out, "--html", str(page)]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert main(["inspect", out, "--xml"]) == 2


def test_a_directory_without_documents_has_a_card(tmp_path, run, capsys):
    run(write_jsonl(tmp_path / "x.jsonl", make_texts(30)), "made")
    (tmp_path / "x.bin").write_bytes(b"")
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 0, 1) + struct.pack("<q", 0)
    (tmp_path / "x.idx").write_bytes(index)
    out = tmp_path / "out"
    given = ["import", tmp_path / "x", "--output", out, "--tokenizer", tmp_path / "made"]
    assert main([str(a) for a in given]) == 0
    assert main(["inspect", str(out)]) == 0
    assert "train: 0 documents, 0 tokens" in capsys.readouterr().out
    assert "train" in card_page(make_card(out))
