"""Tokens to text as they arrive, and where to stop. Imports no torch."""

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"  # what decoders put for bytes that are no whole character


class TextStream:
    """The text of tokens that come one by one, cut before the first stop string.

    decode: a list of token ids to their text. prompt: the tokens before, which decide such things
    as a space between the two. stop: strings that end the text, wherever token boundaries fall; the
    one that is complete first wins. The pieces that `take` returns never change afterwards: what
    may be half a character or the beginning of a stop string is held back.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        prompt: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        if not all(stop):
            raise ValueError("stop: got an empty string, expected text; leave it out for no stop")
        self._decode = decode
        self._tokens = list(prompt)
        # Only a window of tokens is decoded: the last piece, for the context that decoders look at,
        # and what came since.
        self._start, self._end = 0, len(self._tokens)
        self._pending = ""  # decoded and not yet taken
        self._stops = tuple(stop)
        self.is_done = False  # a stop string came

    def feed(self, token: int) -> bool:
        """Add a token; returns whether the text has ended."""
        if not self.is_done:
            self._tokens.append(token)
            self._advance(is_last=False)
        return self.is_done

    def take(self) -> str:
        """Return the text that is sure and was not returned before."""
        held = 0 if self.is_done else _overlap(self._pending, self._stops)
        sure = len(self._pending) - held
        piece, self._pending = self._pending[:sure], self._pending[sure:]
        return piece

    def finish(self) -> str:
        """Return what was held back: no token follows."""
        if not self.is_done:
            self._advance(is_last=True)
        piece, self._pending = self._pending, ""
        return piece

    def _advance(self, *, is_last: bool) -> None:
        before = self._decode(self._tokens[self._start : self._end])
        now = self._decode(self._tokens[self._start :])
        if len(now) <= len(before) or (now.endswith(_BROKEN) and not is_last):
            return
        self._start, self._end = self._end, len(self._tokens)
        # Character by character, in effect: the outcome must not depend on how the text was cut
        # into tokens.
        self._pending += now[len(before) :]
        ends = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := self._pending.find(stop)) >= 0
        ]
        if ends:
            self._pending = self._pending[: min(ends)[1]]
            self.is_done = True


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
