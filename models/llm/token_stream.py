"""Filters and splits a stream of tokens into sentences that can be spoken before the answer is complete."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from models.speech.text import MAX_SENTENCE_CHARS, printable, split_sentences

FIRST_CLAUSE_CHARS = 48  # minimum length of a first piece that ends at a clause: about 3 s of speech
_CLAUSE = re.compile(r"[,;:][\"'”’)\]]*\s|\s[—–-]\s")
_OPENING, _CLOSING = "<think>", "</think>"
_TAG = re.compile(f"{_OPENING}|{_CLOSING}")


async def speakable_pieces(tokens: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield each sentence as soon as it is complete. A long first sentence is split after its first clause.

    A line break also ends a piece, because list items and headings have no full stop. Only white space is lost.
    """
    pending, first = "", True
    async with aclosing(tokens):
        async for token in tokens:
            pending += token
            done, pending = _complete_pieces(pending, first)
            for piece in done:
                first = False
                yield piece
    for line in pending.splitlines():
        for piece in split_sentences(line):
            yield piece


def _complete_pieces(text: str, first: bool) -> tuple[list[str], str]:
    """The pieces of `text` that no further token can change, and the remaining text."""
    *lines, rest = text.split("\n")
    done = [piece for line in lines for piece in split_sentences(line)]
    begin = 0
    for piece in split_sentences(rest)[:-1]:  # text after an end mark shows that the mark ended a sentence
        begin = rest.index(piece, begin) + len(piece)
        done.append(piece)
    rest = rest[begin:].lstrip() if begin else rest
    if first and not done and (clause := _first_clause(rest)):
        done, rest = [rest[:clause].rstrip()], rest[clause:].lstrip()
    bare = rest.rstrip()
    # of several spaces at the end keep one: the rest is examined again at each token
    return done, bare + rest[len(bare) : len(bare) + 1]


def _first_clause(text: str) -> int:
    """The end of the first clause with at least FIRST_CLAUSE_CHARS characters, or 0."""
    for mark in _CLAUSE.finditer(text, 0, MAX_SENTENCE_CHARS):
        if mark.end() >= FIRST_CLAUSE_CHARS:
            return mark.end()
    return 0


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
