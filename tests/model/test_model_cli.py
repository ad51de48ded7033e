import io
import re
import shutil
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model import build, preset, save_pretrained
from model.__main__ import _size, main
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


def test_several_prompts(speaking, tmp_path, capsys):
    _, _, path = speaking
    (tmp_path / "prompts.txt").write_text("three four five\n\n six\n")
    line = ["generate", str(path), "--max-new-tokens", "6", "--prompt", "one two"]
    alone = []
    for prompt in ("one two", "three four five", " six"):
        assert main([*line[:-1], prompt]) == 0
        alone.append(capsys.readouterr().out)
    expected = "".join(f"=== {i} of 3 ===\n{text}" for i, text in enumerate(alone, start=1))
    for more in ([], ["--batch-size", "2"], ["--stream"]):
        assert main([*line, "--prompts", str(tmp_path / "prompts.txt"), *more]) == 0
        assert capsys.readouterr().out == expected


def test_stop(speaking, capsys):
    _, _, path = speaking
    line = ["generate", str(path), "--prompt", "one two", "--temperature", "3"]
    assert main(line) == 0
    words = capsys.readouterr().out.split()
    stop = words[5]
    assert main([*line, "--stop", stop, "--stop", "never"]) == 0
    assert capsys.readouterr().out.split() == words[: words.index(stop, 2)]


class Terminal(io.StringIO):
    """Remembers what was written when it was flushed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def isatty(self):
        return True

    def flush(self):
        self.seen.append(self.getvalue())


def test_a_terminal_shows_text_as_it_is_made(tmp_path, monkeypatch, capsys):
    """Byte by byte: a Chinese character has three."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    net = build(preset("gpt2-tiny", vocab_size=256, n_layers=1))
    # It says the next byte of a text that it knows by heart.
    text = "天气很好，a b。" * 2
    ids = tokenizer.encode(text).ids
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.trunk.final_norm.weight.fill_(1)
        net.trunk.token_embedding.weight.copy_(10 * torch.randn(256, 128))
        for place, token in enumerate(ids[1:]):
            wanted = net.trunk.token_embedding.weight[token]
            net.trunk.position_embedding.weight[place] = 1000 * wanted
    (tmp_path / "tok").mkdir()
    tokenizer.save(str(tmp_path / "tok" / "tokenizer.json"))
    save_pretrained(net, tmp_path / "m", tokenizer_dir=tmp_path / "tok")
    count = len(ids) - 3
    line = ["generate", str(tmp_path / "m"), "--prompt", "天", "--max-new-tokens", str(count)]
    assert main([*line, "--no-stream"]) == 0
    assert capsys.readouterr().out == text + "\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(line) == 0
    assert terminal.seen == [*(text[:end] for end in range(2, len(text) + 1)), text + "\n"]


def test_import_export_verify(speaking, tmp_path, capsys):
    _, _, path = speaking
    line = ["--dtype", "bf16", "--max-shard-size", "200KB"]
    assert main(["import", str(path), str(tmp_path / "b"), *line]) == 0
    assert "llama, causal_lm, 11 tensors, 371 kB, with tokenizer" in capsys.readouterr().out
    assert len(list((tmp_path / "b").glob("*.safetensors"))) == 2
    assert main(["export", str(tmp_path / "b"), str(tmp_path / "c"), "--dtype", "fp32"]) == 0
    assert "with tokenizer" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "c")]) == 0
    assert "float32" in capsys.readouterr().out
    assert main(["generate", str(tmp_path / "c"), "--prompt", "one"]) == 0


def test_a_run_stands_for_its_newest_checkpoint(speaking, tmp_path, capsys):
    _, _, path = speaking
    run = tmp_path / "run"
    for step in (5, 10, 15):
        shutil.copytree(path, run / "checkpoints" / f"step_{step:08d}")
    # An empty list of files: everything there is one too many.
    (run / "checkpoints" / "step_00000010" / "MANIFEST.json").write_text('{"schema":1,"files":{}}')
    assert main(["generate", str(run), "--prompt", "one"]) == 0
    assert main(["describe", str(run)]) == 0
    assert "llama, causal_lm, 1 layers" in capsys.readouterr().out
    assert main(["verify", str(run)]) == 2
    assert "step_00000010: config.json is not in MANIFEST.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5m", 1_500_000), ("77", 77), ("2 ", 2)]
)
def test_sizes(text, size):
    assert _size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5", "0", "5 apples", "1e9"])
def test_sizes_that_are_none(text, speaking, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["import", "a", "b", f"--max-shard-size={text}"])
    assert caught.value.code == 2
    assert "expected a size such as" in capsys.readouterr().err


def test_describe(speaking, capsys):
    _, _, path = speaking
    assert main(["describe", "gpt2-124m", "--seq-len", "1024"]) == 0
    out = capsys.readouterr().out
    assert "gpt2, causal_lm, 12 layers, 124,439,808 parameters" in out
    assert re.search(r"attention.qkv +2304 × 768 +12 +21,233,664 +17.1%", out)
    assert "in full: 8.544e+08" in out  # 6 · 123.5M + 12·12·768·1024
    assert "causal:  7.979e+08" in out
    assert "36.9 kB per token" in out  # 2·12·768 of two bytes
    assert main(["describe", str(path)]) == 0
    assert "llama, causal_lm, 1 layers" in capsys.readouterr().out
    save_pretrained(build(preset("bert-tiny", num_labels=7), "token"), path.parent / "tagger")
    assert main(["describe", str(path.parent / "tagger")]) == 0
    out = capsys.readouterr().out
    assert "bert, token, 2 layers" in out
    assert re.search(r"score +7 × 128 ", out)


def test_describe_with_every_option(capsys):
    line = ["describe", "bert-base", "--head", "pretraining", "--seq-len", "128"]
    line += ["--batch-size", "32", "--dtype", "fp32", "--zero-stage", "2", "--gpus", "4"]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "bert, pretraining, 12 layers, 110,106,428 parameters" in out
    assert "128 tokens, 15% of them predicted" in out
    assert "32 × 128 tokens in fp32, ZeRO stage 2 on 4 devices" in out
    assert re.search(r"weights +440 MB", out)
    assert re.search(r"gradients +110 MB", out)
    assert re.search(r"optimizer +330 MB", out)  # 12 bytes by 4 devices
    assert "causal:" not in out
    assert "cache" not in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["describe", "gpt2-125m"], ["preset: got 'gpt2-125m'", "did you mean 'gpt2-124m'"]),
        (["describe", "gpt2-tiny", "--seq-len", "-3"], ["--seq-len: got -3"]),
        (["describe", "gpt2-tiny", "--batch-size", "0"], ["--batch-size: got 0"]),
        (["describe", "gpt2-tiny", "--head", "masked_lm"], ["head: got 'masked_lm'", "causal_lm"]),
        (["import", "{empty}", "{empty}/x"], ["config.json: no such file"]),
        (["import", "{m}", "{m}"], ["exists already"]),
        (["import", "{m}", "{empty}/x", "--from-pickle"], ["leave --from-pickle out"]),
        (["export", "{empty}", "{empty}/x"], ["expected a model directory"]),
        (["verify", "{empty}/none"], ["no such directory"]),
        (["describe", "{empty}"], ["no config.json and no finished checkpoint"]),
        (["generate", "{empty}/none", "--prompt", "x"], ["no such directory"]),
        (["generate", "{m}", "--prompt", ""], ["begin-of-text"]),
        (["generate", "{m}", "--prompt", "one", "--top-p", "7"], ["top_p: got 7.0"]),
        (["generate", "{m}", "--prompt", "one", "--min-p", "7"], ["min_p: got 7.0"]),
        (["generate", "{m}", "--prompt", "one", "--stop", ""], ["stop: got an empty string"]),
        (["generate", "{m}", "--prompt", "one", "--batch-size", "0"], ["--batch-size: got 0"]),
        (["generate", "{m}"], ["--prompt: missing"]),
        (["generate", "{m}", "--prompts", "{empty}/none"], ["--prompts", "none"]),
        (["generate", "{m}", "--prompt", "one", "--device", "abacus"], ["--device", "'abacus'"]),
        (["generate", "{m}", "--prompt", "one", "--device", "meta"], ["--device", "'meta'"]),
        (["describe", "gpt2-tiny", "--seq-len", "513"], ["seq_len: got 513", "max_seq_len=512"]),
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
        "import sys, model.detokenize, model.hf.manifest; from model.__main__ import main\n"
        "main(['describe', 'gpt2-tiny'])\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
