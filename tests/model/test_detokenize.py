"""Text that is shown while it is made: never half a character, never taken back."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.detokenize import TextStream

TEXTS = [
    "def main(argv):\n    return 0\n",
    "今天天气很好，我们去公园散步。她说：“好的！”",
    "naïve café – 12 € … über",
    "👩‍👩‍👧‍👦 family, 🇨🇳 flag, 🤷🏽‍♀️ shrug",
    "  leading and trailing  ",
    "混合 mixed 文本 with 𠜎 rare 字",
]


def byte_level(merges=60):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=258 + merges, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_fallback():
    """As Llama 2's: words with ▁ for a space, bytes for what is not in the vocabulary."""
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for piece in ["<unk>", *"▁abcdefghijklmnopqrstuvwxyz", "▁l", "▁le", "▁lea"]:
        pieces.setdefault(piece, len(pieces))
    merges = [("▁", "l"), ("▁l", "e"), ("▁le", "a")]
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def word_piece():
    words = {"[UNK]": 0}
    for text in TEXTS:
        for char in text:
            words.setdefault(char, len(words))
            words.setdefault(f"##{char}", len(words))
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def pieces_of(tokenizer, prompt, tokens, stop=()):
    text, pieces = TextStream(tokenizer.decode, prompt, stop), []
    for token in tokens:
        is_done = text.feed(token)
        pieces.append(text.take())
        if is_done:
            break
    return [*pieces, text.finish()]


@pytest.mark.parametrize("make", [byte_level, byte_fallback, word_piece])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_decoded_text(make, text):
    tokenizer = make()
    ids = tokenizer.encode(text).ids
    whole = tokenizer.decode(ids)
    for cut in {0, 1, len(ids) // 2, len(ids) - 1}:
        # A prompt always ends with a whole character.
        if (start := tokenizer.decode(ids[:cut])).endswith("\ufffd"):
            continue
        pieces = pieces_of(tokenizer, ids[:cut], ids[cut:])
        assert start + "".join(pieces) == whole
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_appears_when_its_last_byte_does():
    tokenizer = byte_level(merges=0)
    ids = tokenizer.encode("天a").ids
    assert len(ids) == 4
    assert pieces_of(tokenizer, [], ids) == ["", "", "天", "a", ""]


def test_bytes_that_are_no_text_are_shown_as_the_decoder_shows_them():
    tokenizer = byte_level(merges=0)
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(2, 258) for _ in range(30)]
        assert "".join(pieces_of(tokenizer, [], ids)) == tokenizer.decode(ids)
    half = tokenizer.encode("天").ids[:2]
    assert pieces_of(tokenizer, [], half) == ["", "", "\ufffd"]


def test_special_tokens_are_no_text():
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    ids = tokenizer.encode("天").ids
    assert "".join(pieces_of(tokenizer, [0], [ids[0], *ids[1:], 1, 0])) == "天"


def reference(text, stops):
    """Read one character after another."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


def test_stops_do_not_depend_on_token_boundaries():
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choice("ab天") for _ in range(12))
        stops = ["".join(draw.choice("ab天") for _ in range(draw.randint(1, 4))) for _ in range(2)]
        vocabulary = []
        at = 0
        while at < len(text):
            size = draw.randint(1, 4)
            vocabulary.append(text[at : at + size])
            at += size
        stream = TextStream(lambda ids, v=vocabulary: "".join(v[i] for i in ids), (), stops)
        shown = ""
        for token in range(len(vocabulary)):
            is_done = stream.feed(token)
            shown += stream.take()
            assert reference(text, stops).startswith(shown)
            if is_done:
                break
        shown += stream.finish()
        assert shown == reference(text, stops), (vocabulary, stops)
        assert stream.is_done == any(stop in text for stop in stops)


def test_the_beginning_of_a_stop_is_held_back_until_it_is_none():
    tokenizer = byte_level(merges=0)
    ids = tokenizer.encode("a##b###c").ids
    assert pieces_of(tokenizer, [], ids, ["###"]) == ["a", "", "", "##b", "", "", "", ""]
    assert pieces_of(tokenizer, [], ids[:3], ["###"]) == ["a", "", "", "##"]


def test_a_stop_in_the_prompt_is_none():
    tokenizer = byte_level(merges=0)
    prompt, new = tokenizer.encode("x###").ids, tokenizer.encode("yes").ids
    assert "".join(pieces_of(tokenizer, prompt, new, ["###"])) == "yes"


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="stop: got an empty string"):
        TextStream(str, (), ["x", ""])
