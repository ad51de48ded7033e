import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from model import build, preset, save_pretrained
from model.__main__ import main
from model.generate import generate


@pytest.fixture
def speaking(tmp_path):
    """A model directory with a tokenizer of ten words."""
    words = {
        word: i
        for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="zero"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tok").mkdir()
    tokenizer.save(str(tmp_path / "tok" / "tokenizer.json"))
    net = build(preset("llama-tiny", vocab_size=8, n_layers=1))
    save_pretrained(net, tmp_path / "m", tokenizer_dir=tmp_path / "tok")
    return net, tokenizer, tmp_path / "m"


def test_generate(speaking, capsys):
    net, tokenizer, path = speaking
    assert main(["generate", str(path), "--prompt", "one two", "--max-new-tokens", "5"]) == 0
    expected = generate(net, torch.tensor([[1, 2]]), 5)[0].tolist()
    assert capsys.readouterr().out == tokenizer.decode(expected) + "\n"


def test_generate_with_every_option(speaking, capsys):
    _, _, path = speaking
    line = ["generate", str(path), "--prompt", "one", "--temperature", "1.5", "--top-k", "5"]
    line += ["--top-p", "0.9", "--seed", "3", "--device", "cpu", "--dtype", "bf16"]
    texts = []
    for _ in range(2):
        assert main(line) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0].split()) == 65


def test_describe(speaking, capsys):
    _, _, path = speaking
    assert main(["describe", "gpt2-124m", "--seq-len", "1024"]) == 0
    out = capsys.readouterr().out
    assert "gpt2, 12 layers, 124,439,808 parameters" in out
    assert "attention.qkv" in out
    assert "8.544e+08" in out  # 6 · 123.5M + 12·12·768·1024
    assert main(["describe", str(path)]) == 0
    assert "llama, 1 layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["describe", "gpt2-125m"], ["preset: got 'gpt2-125m'", "did you mean 'gpt2-124m'"]),
        (["describe", "gpt2-tiny", "--seq-len", "-3"], ["--seq-len: got -3"]),
        (["describe", "{empty}"], ["config.json: no such file"]),
        (["generate", "{empty}/none", "--prompt", "x"], ["no such directory"]),
        (["generate", "{m}", "--prompt", ""], ["begin-of-text"]),
        (["generate", "{m}", "--prompt", "one", "--top-p", "7"], ["top_p: got 7.0"]),
        (["generate", "{m}", "--prompt", "one", "--device", "abacus"], ["--device", "'abacus'"]),
    ],
)
def test_mistakes_take_one_line(line, words, speaking, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = [part.format(empty=tmp_path / "empty", m=speaking[2]) for part in line]
    assert main(line) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def test_broken_tokenizer(speaking, capsys):
    path = speaking[2]
    (path / "tokenizer.json").write_text("{}")
    assert main(["generate", str(path), "--prompt", "x"]) == 2
    assert "tokenizer.json" in capsys.readouterr().err
    (path / "tokenizer.json").unlink()
    assert main(["generate", str(path), "--prompt", "x"]) == 2
    assert "no tokenizer.json" in capsys.readouterr().err


def test_help_and_describe_need_no_torch():
    code = (
        "import sys; from model.__main__ import main\n"
        "main(['describe', 'gpt2-tiny'])\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
