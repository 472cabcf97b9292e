"""Cuts a stream of tokens into pieces that can be spoken while the rest still comes. Knows no model and no voice."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from models.speech.text import MAX_SENTENCE_CHARS, printable, split_sentences

FIRST_CLAUSE_CHARS = (
    48  # the first piece may end at a clause from here on: about 3 s of speech, enough to bridge the next
)
_CLAUSE = re.compile(r"[,;:][\"'”’)\]]*\s|\s[—–-]\s")
_OPENING, _CLOSING = "<think>", "</think>"
_TAG = re.compile(f"{_OPENING}|{_CLOSING}")


async def speakable_pieces(tokens: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield sentences as soon as they are whole; of a long first one, its first clause.

    A line break ends a piece, too: list items and headings have no full stop. Nothing but white space is lost.
    """
    waiting, first = "", True
    async with aclosing(tokens):
        async for token in tokens:
            waiting += token
            done, waiting = _whole(waiting, first)
            for piece in done:
                first = False
                yield piece
    for line in waiting.splitlines():
        for piece in split_sentences(line):
            yield piece


def _whole(text: str, first: bool) -> tuple[list[str], str]:
    """The pieces of `text` that no further token can change, and the rest."""
    *lines, rest = text.split("\n")
    done = [piece for line in lines for piece in split_sentences(line)]
    begin = 0
    for piece in split_sentences(rest)[:-1]:  # what follows an end mark proves that it ended a sentence
        begin = rest.index(piece, begin) + len(piece)
        done.append(piece)
    rest = rest[begin:].lstrip() if begin else rest
    if first and not done and (clause := _first_clause(rest)):
        done, rest = [rest[:clause].rstrip()], rest[clause:].lstrip()
    bare = rest.rstrip()
    return done, bare + rest[len(bare) : len(bare) + 1]  # of a row of blanks one will do: what waits is looked at again


def _first_clause(text: str) -> int:
    """Where the first clause of at least FIRST_CLAUSE_CHARS ends, or 0."""
    for mark in _CLAUSE.finditer(text, 0, MAX_SENTENCE_CHARS):
        if mark.end() >= FIRST_CLAUSE_CHARS:
            return mark.end()
    return 0


async def without_thoughts(tokens: AsyncGenerator[str, None], inside: bool = False) -> AsyncGenerator[str, None]:
    """The tokens without what stands between <think> and </think>, which reasoning models send before their answer.

    inside: whether the first thought is open already. Tags that have no partner are left out.
    """
    waiting, begun = "", False
    async with aclosing(tokens):
        async for token in tokens:
            shown, waiting, inside = _split(waiting + token, inside)
            shown = shown if begun else shown.lstrip()
            begun |= bool(shown)
            if shown:
                yield shown
    if waiting and not inside:
        yield waiting


def _split(text: str, inside: bool) -> tuple[str, str, bool]:
    """What may be shown, what must wait for the next token, and whether that stands inside a thought."""
    shown = ""
    while tag := _TAG.search(text):
        shown += "" if inside else text[: tag.start()]
        inside, text = tag.group() == _OPENING, text[tag.end() :]
    known = len(text) - _partial_tag(text)
    return shown if inside else shown + text[:known], text[known:], inside


def _partial_tag(text: str) -> int:
    """How many characters at the end may be the beginning of a tag."""
    return next((n for n in range(len(_CLOSING) - 1, 0, -1) if text.endswith((_OPENING[:n], _CLOSING[:n]))), 0)


async def without_unprintable(tokens: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The tokens without control characters; halves of a character that come in two of them are joined.

    JSON may hold a half by itself ("\\ud83d"), which neither a file nor an answer in UTF-8 can.
    """
    half = ""
    async with aclosing(tokens):
        async for token in tokens:
            text, half = half + token, ""
            if "\ud800" <= text[-1:] <= "\udbff":
                text, half = text[:-1], text[-1]
            whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
            if shown := printable(whole):
                yield shown
