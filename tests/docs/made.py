"""The files that the pages speak of, small, made here: texts in two languages, labels, a model."""

import gzip
import json
import random
import string
from pathlib import Path
from pydoc_data.topics import topics

_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SUBJECTS = ("老师", "学生", "我们", "北京的天气", "这本书", "他的朋友", "市场", "研究人员")
_VERBS = ("喜欢", "发现了", "正在学习", "没有忘记", "影响着", "带来了", "介绍了", "需要")
_OBJECTS = (
    "新的方法",
    "中国历史",
    "人工智能",
    "一条河",
    "许多问题",
    "传统文化",
    "科学技术",
    "语言",
)


def english(count: int) -> list[str]:
    """Real prose, which every Python carries: the pages of its language reference, in parts."""
    words = "\n\n".join(topics[name] for name in sorted(topics)[:30]).split()
    return [" ".join(words[at : at + 120]) for at in range(0, 120 * count, 120)]


def chinese(count: int, sentences: int) -> list[str]:
    rng = random.Random(0)
    parts = (_SUBJECTS, _VERBS, _OBJECTS)
    return [
        "".join("".join(map(rng.choice, parts)) + "。" for _ in range(sentences))
        for _ in range(count)
    ]


def write_files(folder: Path) -> None:
    """Write everything below data/ that the pages and the shipped configs name."""
    data = folder / "data"
    (data / "english").mkdir(parents=True)
    (data / "chinese").mkdir()
    prose = english(160)
    for name in ("my-text.jsonl.gz", "english.jsonl.gz", "english/one.jsonl.gz"):
        _write(data / name, [{"text": text} for text in prose])
    _write(data / "chinese.jsonl.gz", [{"text": text} for text in chinese(120, 12)])
    _write(data / "chinese/one.jsonl.gz", [{"text": text} for text in chinese(120, 12)])
    _write(data / "zh-tang-poems.jsonl.gz", [{"text": text} for text in chinese(300, 3)])
    (data / "tinyshakespeare.txt").write_text("\n\n".join(prose), encoding="utf-8")
    labelled = [
        {"text": f"It was {word}, number {n}.", "label": label}
        for n in range(240)
        for word, label in (("good", "positive"), ("bad", "negative"))
    ]
    for name in ("banking77", "clinc150", "sentence-polarity"):
        (data / name).mkdir()
        for split, step in (("train", 1), ("dev", 21), ("val", 21), ("test", 31)):
            _write(data / f"{name}/{split}.jsonl.gz", labelled[::step])
    for split, step in (("train", 1), ("dev", 21), ("test", 31)):
        _write(data / f"reviews.{split}.jsonl", labelled[::step])
    _write_tasks(data)
    (folder / "hosts.txt").write_text("node1 slots=8\nnode2 slots=8\n")
    (folder / "my-tasks").mkdir()
    questions = [{"question": "Two and two are", "choices": ["four", "five"], "answer": 0}]
    _write(folder / "my-tasks/my_task.jsonl", questions * 4)
    _write(data / "new-texts.jsonl", [{"text": row["text"]} for row in labelled[:6]])


def _write_tasks(data: Path) -> None:
    """Write what the configs of the other tasks name."""
    for name in ("stsb", "gsm8k", "wnut17", "crossner/politics", "cmrc2018", "xquad"):
        (data / name).mkdir(parents=True)
    for split, step in (("train", 1), ("dev", 21), ("test", 31)):
        for language in ("en", "zh"):
            alike = [f"text {n},another {n % 7},{n % 6}.0\n" for n in range(0, 480, step)]
            (data / f"stsb/{language}-{split}.csv").write_text("".join(alike))
    sums = [{"question": f"{n} and {n}?", "answer": f"#### {2 * n}"} for n in range(480)]
    _write(data / "gsm8k/train.jsonl.gz", sums)
    _write(data / "gsm8k/test.jsonl.gz", sums[:8])
    sentences = "".join(f"Ada\tB-person\nis\tO\nin\tO\nX{n}\tB-location\n\n" for n in range(480))
    for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"):
        (data / "wnut17" / name).write_text(sentences)
    for name in ("train.txt", "dev.txt", "test.txt"):
        (data / "crossner/politics" / name).write_text(sentences)
    asked = [
        {
            "context": f"The answer is number {n}.",
            "qas": [
                {
                    "id": str(n),
                    "question": "What is it?",
                    "answers": [{"text": f"number {n}", "answer_start": 14}],
                }
            ],
        }
        for n in range(960)
    ]
    content = json.dumps({"data": [{"title": "made", "paragraphs": asked}]})
    for name in ("cmrc2018/cmrc2018_dev", "cmrc2018/cmrc2018_trial", "xquad/xquad.en"):
        (data / f"{name}.json").write_text(content)


def write_models(models: Path) -> None:
    """Write released checkpoints as their authors do, with transformers; of random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import (
        BertConfig,
        BertForPreTraining,
        BertTokenizer,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    models.mkdir()
    letters = string.ascii_lowercase + string.digits
    pieces = [*_SPECIALS, *string.punctuation, *letters, *(f"##{letter}" for letter in letters)]
    (models / "vocab.txt").write_text("\n".join(pieces))
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForPreTraining(BertConfig(vocab_size=len(pieces), intermediate_size=64, **shape))
    for name in ("bert-base-uncased", "old-bert"):
        bert.save_pretrained(models / name)
        BertTokenizer(str(models / "vocab.txt")).save_pretrained(models / name)
    (models / "old-bert/model.safetensors").unlink()
    torch.save(bert.state_dict(), models / "old-bert/pytorch_model.bin")
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        english(20),
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=bytes_
        ),
    )
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=bpe, **ends).save_pretrained(models / "gpt2")
    gpt2 = GPT2Config(
        vocab_size=400, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(gpt2).save_pretrained(models / "gpt2")


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
