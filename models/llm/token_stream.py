"""Filters and splits a stream of tokens into sentences that can be spoken before the answer is complete."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from models.errors import WarmTalkError
from models.runtime.silences import with_silences
from models.speech.readable import closes_fence, fence_of, has_symbol
from models.speech.text import MAX_SENTENCE_CHARS, printable, sentence_may_continue, split_sentences

FIRST_CLAUSE_CHARS = 48  # minimum length of a first piece that ends at a clause: about 3 s of speech
SENTENCE_PAUSE_S = 0.5  # without a further token: the full stop before it has ended a sentence
UNCERTAIN_PAUSES = 3  # times SENTENCE_PAUSE_S after a mark that may not end a sentence: "Dr.", "3."
_CLAUSE = re.compile(r"[,;:][\"'”’)\]]*\s|\s[—–-]\s")
_ENDING = re.compile(r"[.!?…؟۔।。！？]+[\"'”’」』)\]]*$")
_OPENING, _CLOSING = "<think>", "</think>"
_TAG = re.compile(f"{_OPENING}|{_CLOSING}")


async def speakable_pieces(
    tokens: AsyncGenerator[str, None], sentence_pause_s: float = SENTENCE_PAUSE_S
) -> AsyncGenerator[str, None]:
    """Yield each sentence as soon as it is complete. A long first sentence is split after its first clause.

    A sentence is complete when the next one begins, or when its full stop is followed by no token for sentence_pause_s.
    A line break also ends a piece, because list items and headings have no full stop. A block of code is one piece.
    Only white space is lost. If the tokens end with an error, the rest of the text comes before it.
    """
    splitter = _Splitter()
    try:
        async with aclosing(with_silences(tokens, lambda: splitter.pause_s(sentence_pause_s))) as timed:
            async for token in timed:
                for piece in splitter.end() if token is None else splitter.push(token):
                    yield piece
    except Exception:
        for piece in splitter.end():
            yield piece
        raise
    for piece in splitter.end():
        yield piece


class _Splitter:
    """Splits a text that arrives in tokens into pieces."""

    def __init__(self) -> None:
        self._pending = ""  # the last line, as far as it is not in a piece yet
        self._code: list[str] = []  # the lines of an open block of code
        self._fence = ""  # the mark that opened it
        self._first = True
        self._line_spoken = False  # the last line has given a piece with a word
        self._text_s = time.monotonic()  # when the last token that is not white space arrived

    def push(self, token: str) -> list[str]:
        """The pieces that no further token can change."""
        if token.strip():
            self._text_s = time.monotonic()
        *lines, rest = (self._pending + token).split("\n") if "\n" in token else (self._pending + token,)
        pieces = [piece for line in lines for piece in self._line(line)]
        self._pending = rest
        if not self._fence and not fence_of(rest):
            pieces += self._sentences()
        self._first = self._first and not pieces
        return pieces

    def end(self) -> list[str]:
        """The pieces of the text so far. What follows may continue its last line."""
        begun = self._line_spoken
        pieces = self._line(self._pending) if self._pending else []
        self._line_spoken = begun or bool(pieces)
        if self._code:
            pieces.append("\n".join(self._code))
        self._pending, self._code, self._fence = "", [], ""
        self._first = self._first and not pieces
        return pieces

    def pause_s(self, sentence_pause_s: float) -> float | None:
        """After which time without a token the pending text is a complete sentence; None: it is not."""
        text = self._pending.rstrip()
        if self._fence or fence_of(text) or not _ENDING.search(text, max(0, len(text) - MAX_SENTENCE_CHARS)):
            return None
        factor = UNCERTAIN_PAUSES if sentence_may_continue(text) else 1
        return max(0.0, self._text_s + factor * sentence_pause_s - time.monotonic())

    def _line(self, line: str) -> list[str]:
        """The pieces of a complete line."""
        begun, self._line_spoken = self._line_spoken, False
        if self._fence:
            self._code.append(line)
            if not closes_fence(line, self._fence):
                return []
            code, self._code, self._fence = "\n".join(self._code), [], ""
            return [code]
        if fence := fence_of(line):
            self._fence, self._code = fence, [line]
            return []
        return _spoken(split_sentences(line), begun)

    def _sentences(self) -> list[str]:
        """Take the complete sentences out of the last line, or its first clause."""
        rest, done, begin = self._pending, [], 0
        for piece in split_sentences(rest)[:-1]:  # text after an end mark shows that the mark ended a sentence
            begin = rest.index(piece, begin) + len(piece)
            done.append(piece)
        rest = rest[begin:].lstrip() if begin else rest
        if self._first and not done and (clause := _first_clause(rest)):
            done, rest = [rest[:clause].rstrip()], rest[clause:].lstrip()
        bare = rest.rstrip()
        # of several spaces at the end keep one: the rest is examined again at each token
        self._pending = bare + rest[len(bare) : len(bare) + 1]
        pieces = _spoken(done, self._line_spoken)
        self._line_spoken |= bool(pieces)
        return pieces


def _spoken(pieces: list[str], begun: bool) -> list[str]:
    """The pieces of a line without those that have no word, such as an emoji after a sentence.

    begun: an earlier piece of the line had a word. A line of symbols is one piece: the voice reports that it cannot be
    spoken.
    """
    worded = [piece for piece in pieces if any(c.isalnum() for c in piece)]
    line = " ".join(pieces)
    return worded if worded or begun or not has_symbol(line) else [line]


def _first_clause(text: str) -> int:
    """The end of the first clause with at least FIRST_CLAUSE_CHARS characters, or 0."""
    for mark in _CLAUSE.finditer(text, 0, MAX_SENTENCE_CHARS):
        if mark.end() >= FIRST_CLAUSE_CHARS:
            return mark.end()
    return 0


async def end_when_silent(
    tokens: AsyncGenerator[str, None], timeout_s: float, error: WarmTalkError, from_start: bool = True
) -> AsyncGenerator[str, None]:
    """Yield the tokens. Raises `error` when none arrives for timeout_s.

    from_start: False: the first token may take any time.
    """
    begun = from_start
    async with aclosing(tokens):
        while True:
            try:
                async with asyncio.timeout(timeout_s if begun else None) as limit:
                    token = await anext(tokens, None)
            except TimeoutError:
                if limit.expired():
                    raise error from None
                raise
            if token is None:
                return
            yield token
            begun = True


async def without_thoughts(tokens: AsyncGenerator[str, None], inside: bool = False) -> AsyncGenerator[str, None]:
    """Drop the text between <think> and </think>, where reasoning models put their reasoning.

    inside: the stream begins inside a <think> block. Unmatched tags are dropped too.
    """
    pending, started = "", False
    async with aclosing(tokens):
        async for token in tokens:
            answer, pending, inside = _split_tags(pending + token, inside)
            answer = answer if started else answer.lstrip()
            started |= bool(answer)
            if answer:
                yield answer
    if pending and not inside:
        yield pending


def _split_tags(text: str, inside: bool) -> tuple[str, str, bool]:
    """The answer's text, the end that may be an incomplete tag, and whether that end is inside a <think> block."""
    answer = ""
    while tag := _TAG.search(text):
        answer += "" if inside else text[: tag.start()]
        inside, text = tag.group() == _OPENING, text[tag.end() :]
    known = len(text) - _partial_tag(text)
    return answer if inside else answer + text[:known], text[known:], inside


def _partial_tag(text: str) -> int:
    """Number of characters at the end of `text` that may be the beginning of a tag."""
    return next((n for n in range(len(_CLOSING) - 1, 0, -1) if text.endswith((_OPENING[:n], _CLOSING[:n]))), 0)


async def without_unprintable(tokens: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Drop control characters and join surrogate pairs that are split between two tokens.

    JSON may contain a single surrogate ("\\ud83d"), which cannot be encoded in UTF-8.
    """
    half = ""
    async with aclosing(tokens):
        async for token in tokens:
            text, half = half + token, ""
            if "\ud800" <= text[-1:] <= "\udbff":
                text, half = text[:-1], text[-1]
            whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
            if kept := printable(whole):
                yield kept
