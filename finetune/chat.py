"""How a conversation becomes one text: a fixed set of formats, and the same as chat templates.

A checkpoint's own template is a program. It is never run here: it is recognised, or left unused.
"""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROLES = ("system", "user", "assistant")


class Turn(NamedTuple):
    """What one side says."""

    role: str  # one of ROLES
    content: str  # without white space at either end


class Piece(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    is_token: bool  # one special token, and not text that may look like it
    is_answer: bool  # the assistant's own words and the token that ends them: what is learned


class Format(NamedTuple):
    """What stands around each turn. In a field, `{end}` is the token that ends an answer."""

    before: tuple[str, str, str]  # the turns of ROLES
    after: tuple[str, str, str]
    begin: str = ""  # a special token before each turn


FORMATS = {
    "instruction": Format(("", "### Instruction:\n", "### Response:\n"), ("\n\n", "\n\n", "{end}")),
    "dialogue": Format(("", "User: ", "Assistant: "), ("\n\n", "\n\n", "{end}")),
    "chatml": Format(
        ("system\n", "user\n", "assistant\n"), ("{end}\n", "{end}\n", "{end}\n"), "<|im_start|>"
    ),
}
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


class Chat(NamedTuple):
    """A format with the tokens of a tokenizer in it."""

    name: str
    start: str | None  # begin-of-text token, where texts of this tokenizer have one
    end: str  # the token that ends an answer

    def render(self, turns: Sequence[Turn], *, asks: bool = False) -> list[Piece]:
        """Render the turns; `asks`: and what stands before an answer that is wanted."""
        found = [Piece(self.start, True, False)] if self.start else []
        for turn in turns:
            found += self._before(turn.role)
            found.append(Piece(turn.content, False, turn.role == "assistant"))
            found += self._after(turn.role)
        if asks:
            found += self._before("assistant")
        return joined(found)

    def template(self) -> str:
        """Return the same as a Jinja template for Hugging Face's `apply_chat_template`.

        It marks what the assistant says with `generation`, so that others can learn from it alone.
        """
        parts = [_out(self.start)] if self.start else []
        parts.append("{% for message in messages %}")
        for number, role in enumerate(ROLES):
            test = "if" if number == 0 else "elif"
            before, after = "".join(p.text for p in self._before(role)), self._after(role)
            said = "{{ message['content'] | trim }}" + "".join(
                _out(p.text) for p in after if p.is_answer
            )
            if role == "assistant":
                said = "{% generation %}" + said + "{% endgeneration %}"
            rest = "".join(p.text for p in after if not p.is_answer)
            parts.append(f"{{% {test} message['role'] == '{role}' %}}{_out(before)}{said}")
            parts.append(_out(rest))
        parts.append("{% endif %}{% endfor %}{% if add_generation_prompt %}")
        parts.append(_out("".join(p.text for p in self._before("assistant"))) + "{% endif %}")
        return "".join(parts)

    def _before(self, role: str) -> list[Piece]:
        layout = FORMATS[self.name]
        begin = [Piece(layout.begin, True, False)] if layout.begin else []
        return [*begin, Piece(layout.before[ROLES.index(role)], False, False)]

    def _after(self, role: str) -> list[Piece]:
        text = FORMATS[self.name].after[ROLES.index(role)]
        head, mark, tail = text.partition("{end}")
        end = [Piece(self.end, True, role == "assistant")] if mark else []
        return [Piece(head, False, False), *end, Piece(tail, False, False)]


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Leave empty pieces out."""
    return [piece for piece in pieces if piece.text]


def runs(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Group the pieces into single special tokens, and texts that are tokenised whole."""
    run: list[Piece] = []
    for piece in pieces:
        if piece.is_token:
            if run:
                yield run
            yield [piece]
            run = []
        else:
            run.append(piece)
    if run:
        yield run


def _out(text: str | None) -> str:
    """A Jinja expression for this very text."""
    return "{{ " + json.dumps(text) + " }}" if text else ""
