import pytest

from data_prep import quick
from data_prep.shards import Shards
from data_prep.tokenizer import FILE, DocumentTokenizer
from data_prep.tokenizer_config import TrainTokenizer
from data_prep.tokenizer_train import train
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError
from tests.data_prep.samples import make_texts, write_jsonl
from tests.data_prep.test_tokenizer_load import ENTRIES, vocabulary

TEXTS = make_texts(60)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a.jsonl", TEXTS[:30])
    write_jsonl(tmp_path / "data" / "b.jsonl", TEXTS[30:])
    train(TrainTokenizer(vocab_size=300), TEXTS, tmp_path)
    return tmp_path


def read(*arguments):
    return quick.read(quick._parser().parse_args([str(a) for a in arguments]))


@pytest.mark.parametrize("hyphens", [False, True])
def test_a_folder_becomes_shards(folder, hyphens):
    arguments = ["--data_dir", "data", "--vocab_file", FILE, "--output_file", "out"]
    arguments += ["--workers", "1", "--valid", "0.2"]
    if hyphens:
        arguments = [a.replace("_", "-") if a.startswith("--") else a for a in arguments]
    paths = {"data": str(folder / "data"), FILE: str(folder / FILE), "out": str(folder / "out")}
    assert quick.main([paths.get(a, a) for a in arguments]) == EXIT_OK
    tokenizer = DocumentTokenizer(folder / "out")
    found = []
    for split in ("train", "valid"):
        shards = Shards(folder / "out", split)
        found += [tokenizer.decode(shards[n][:-1]) for n in range(len(shards))]
    assert sorted(found) == sorted(TEXTS)


def test_what_the_options_stand_for(folder):
    path = vocabulary(folder)
    base = ["--vocab_file", path, "--output_file", folder / "out", "--data_dir"]
    other = write_jsonl(folder / "c.jsonl", TEXTS)
    config = read(*base, folder / "data", "--do_lower_case")
    assert (config.tokenizer.path, config.tokenizer.lowercase) == (str(path), True)
    assert config.input.paths == (str(folder / "data"),)
    assert (config.workers, config.split.valid) == (0, 0.0)
    config = read(*base, folder / "data/a.jsonl", folder / "data/b.jsonl", "--data_dir", other)
    assert len(config.input.paths) == 3
    assert config.tokenizer.lowercase is False  # without --do_lower_case
    strange = folder / "a: b, [c] #d 'e' 100%.jsonl"
    write_jsonl(strange, TEXTS)
    chosen = ["--text-key", "body", "--document", "line", "--eod", "[CLS]", "--format", "jsonl"]
    config = read(*base, strange, *chosen)
    assert config.input.paths == (str(strange),)
    assert (config.input.text_key, config.input.document) == ("body", "line")
    assert (config.tokenizer.eod, config.input.format) == ("[CLS]", "jsonl")
    assert (
        read("--vocab_file", folder / FILE, *base[2:], folder / "data").tokenizer.lowercase is None
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data_dir", "nothing"], r"^--data_dir: nothing does not exist$"),
        (["--vocab_file", "nothing.txt"], r"^--vocab_file: nothing\.txt is no tokenizer\.json"),
        (["--do_lower_case"], r"^--do_lower_case: goes with a vocab\.txt alone$"),
        (["--valid", "2"], r"^--valid: .*less than 1"),
        (["--valid", "x"], r"--valid: invalid float value: 'x'; see python -m data_prep tokenize"),
        (["--document", "page"], r"^--document: "),
        (["--do_lower"], r"unrecognized arguments: --do_lower"),
    ],
)
def test_mistakes_are_named_by_the_option(folder, change, message):
    base = ["--data_dir", folder / "data", "--vocab_file", folder / FILE]
    arguments = [*base, "--output_file", folder / "out", *change]
    if change[0] == "--data_dir":
        arguments = arguments[2:]
    with pytest.raises(UserError, match=message) as caught:
        quick.main([str(a) for a in arguments])
    assert caught.value.status == EXIT_BAD_INPUT
    assert not (folder / "out").exists()


def test_what_is_required(capsys):
    with pytest.raises(UserError, match=r"required: --data_dir.*--vocab_file.*--output_file"):
        quick.main([])
    assert quick.main(["--help"]) == EXIT_OK
    out = capsys.readouterr().out
    assert "--do_lower_case" in out
    assert "--do-lower-case" in out


@pytest.mark.parametrize("folds", [True, False])
def test_the_classic_command_with_a_vocabulary(folder, folds):
    """Every document's ids are those of the vocabulary's tokenizer, and [SEP] ends it."""
    path = vocabulary(folder)
    write_jsonl(folder / "data" / "a.jsonl", ["The River walks", "the RIVER"])
    write_jsonl(folder / "data" / "b.jsonl", ["你好 世界"])
    arguments = [
        "--data_dir",
        folder / "data",
        "--vocab_file",
        path,
        "--output_file",
        folder / "out",
    ]
    arguments += ["--workers", "1", *(["--do_lower_case"] if folds else [])]
    assert quick.main([str(a) for a in arguments]) == EXIT_OK
    shards = Shards(folder / "out", "train")
    names = [[ENTRIES[n] for n in shards[number]] for number in range(3)]
    walks = ["walk", "##s"]
    if folds:
        assert names[0] == ["the", "river", *walks, "[SEP]"]
        assert names[1] == ["the", "river", "[SEP]"]
    else:
        assert names[0] == ["[UNK]", "[UNK]", *walks, "[SEP]"]
        assert names[1] == ["the", "[UNK]", "[SEP]"]
    assert names[2] == ["你", "好", "世", "界", "[SEP]"]
