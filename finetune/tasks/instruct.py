"""Instruction tuning: what the assistant says is learned, and when it has finished."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.chat import CHATML_TOKENS, FORMATS, Chat, runs
from finetune.conversations import Conversation, stream_conversations
from finetune.tasks.base import IGNORE_INDEX, Encoded, Indices, Outputs, Problem, join
from finetune.tasks.vocabulary import COUNT, Predicted, VocabularyTask
from finetune.tokenizer import TextTokenizer
from model.config import ModelConfig
from runtime.errors import EXIT_BAD_INPUT, UserError

if TYPE_CHECKING:
    from model.heads import Model

Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], bool]  # ids, labels, whether cut


class Instruct(VocabularyTask):
    """Conversations; the loss is of the assistant's words and the token that ends them."""

    kind = "instruct"
    head = "causal_lm"

    def stream(self, path: Path, *, labelled: bool = True) -> Iterator[Conversation | Problem]:
        """Yield the conversations of a file; see `finetune.conversations`."""
        return stream_conversations(path, self.keys, labelled=labelled)

    def check_model(self, shape: ModelConfig, tokenizer: TextTokenizer) -> Iterator[str]:
        """Whether the model generates, and the tokenizer has what the format needs."""
        yield from super().check_model(shape, tokenizer)
        try:
            self.chat(tokenizer)
        except UserError as error:
            yield str(error)

    def chat(self, tokenizer: TextTokenizer) -> Chat:
        """The format of conversations. Raises UserError where the tokenizer lacks its tokens."""
        name: str = self.keys.template
        own = tokenizer.setting("chat_template")
        has_tokens = all(tokenizer.special_id(token) is not None for token in CHATML_TOKENS)
        if name == "chatml" and not has_tokens:
            raise UserError(
                f"task.template: chatml needs the special tokens {' and '.join(CHATML_TOKENS)}, "
                f"which {tokenizer.directory} does not have; take instruction or dialogue",
                status=EXIT_BAD_INPUT,
            )
        ends = [t for i in tokenizer.eos_ids if (t := tokenizer.token(i)) is not None]
        if name == "auto":
            known = [
                n for n in FORMATS for e in ends if Chat(n, tokenizer.start, e).template() == own
            ]
            is_chatml = has_tokens and CHATML_TOKENS[1] in ends
            name = known[0] if known else "chatml" if is_chatml else "instruction"
        wanted = [t for t in ends if t == CHATML_TOKENS[1]] if name == "chatml" else ends
        if not wanted:
            missing = f"{CHATML_TOKENS[1]} as an" if name == "chatml" else "an"
            raise UserError(
                f"{tokenizer.directory}: does not name {missing} end-of-text token, which is to "
                "end an answer; add its id to eos_token_id in its config.json",
                status=EXIT_BAD_INPUT,
            )
        return Chat(name, tokenizer.start, wanted[0])

    def tokenizer_settings(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """The format as a chat template, which reads its special tokens from the text."""
        chat = self.chat(tokenizer)
        return {
            "chat_template": chat.template(),
            "eos_token": chat.end,
            "split_special_tokens": False,
        }

    def encode(
        self, examples: Sequence[Conversation], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Predicted:
        """Tokenise the conversations; labels: the ids that the assistant says, -100 elsewhere.

        One without an answer ends where an answer begins. One that is too long is cut at its end,
        without an end-of-text token: the model must not learn to stop there. A question alone
        loses its beginning.
        """
        chat = self.chat(tokenizer)
        rows = list(self._rows(examples, chat, tokenizer))
        tokens, starts = join([ids for ids, _, _ in rows])
        return Predicted(
            examples,
            tokens,
            starts,
            np.concatenate([wanted for _, wanted, _ in rows]),
            sum(is_cut for *_, is_cut in rows),
            is_packed=self.keys.packing,
        )

    def _rows(
        self, examples: Sequence[Conversation], chat: Chat, tokenizer: TextTokenizer
    ) -> Iterator[Row]:
        for example in examples:
            asks = example.answer is None
            ids: list[int] = []
            counts: list[bool] = []
            for run in runs(chat.render(example.turns, asks=asks)):
                if run[0].is_token:
                    token_id = tokenizer.special_id(run[0].text)
                    assert token_id is not None  # the format is made of them
                    ids.append(token_id)
                    counts.append(run[0].is_answer)
                    continue
                text = "".join(piece.text for piece in run)
                found, ends = tokenizer.encode_part(text)
                ids += found
                # Only the last piece of a run can be an answer: a special token ends it.
                begins = len(text) - len(run[-1].text) if run[-1].is_answer else len(text)
                counts += [end > begins for end in ends]
            longest = self._longest(tokenizer, asks=asks)
            part = slice(max(0, len(ids) - longest), None) if asks else slice(0, longest)
            row = np.array(ids[part], np.int32)
            wanted = np.where(counts[part], row, IGNORE_INDEX).astype(np.int64)
            wanted[:1] = IGNORE_INDEX  # nothing comes before the first token
            yield row, wanted, len(ids) > longest

    def _longest(self, tokenizer: TextTokenizer, *, asks: bool) -> int:
        """Tokens of a conversation at most; a question leaves room for its answer."""
        if not asks:
            return tokenizer.max_length
        positions = tokenizer.shape.max_seq_len
        room = max(positions // 2, positions - self.keys.max_new_tokens)
        return min(tokenizer.max_length, room)

    def answer(
        self, net: "Model", data: Encoded, indices: Indices, tokenizer: TextTokenizer
    ) -> Outputs:
        """Continue these questions, each until it ends; the answers as UTF-8 bytes."""
        from finetune.generation import continued

        questions = [data.row(int(index)) for index in indices]
        ends = tokenizer.special_id(self.chat(tokenizer).end)
        found = continued(net, questions, self.keys.max_new_tokens, ends)
        return [np.frombuffer(tokenizer.decode(ids).strip().encode(), np.uint8) for ids in found]

    def predictions(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield the answers that `answer` gave, else how likely the right ones were."""
        if outputs and outputs[0].dtype != np.uint8:
            yield from super().predictions(data, outputs, labels)
            return
        for found in outputs:
            yield {"predicted": found.tobytes().decode()}

    def report(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, Any]:
        """Return the scores, and how many answers were cut off altogether."""
        without = int((np.stack(outputs)[:, COUNT] == 0).sum())
        return {**super().report(data, outputs, labels), "without_answer": without}
