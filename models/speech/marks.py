"""Takes Markdown's marks of emphasis off a text. Knows nothing of voices and sentences."""

from __future__ import annotations

import re
from bisect import bisect_left

_OPENING = re.compile(r"(?<!\w)(?:\*{1,3}|_{1,3}|~~)(?=\S)")
_MARKS = ("***", "**", "*", "___", "__", "_", "~~")
_CLOSING = {mark: re.compile(rf"(?<=\S)(?={re.escape(mark)}(?!\w))") for mark in _MARKS}


def without_emphasis(text: str) -> str:
    """*word*, **word**, ***word***, _word_ … and ~~word~~ without their marks; of marks inside marks the outer ones go.

    A mark stands before a word, and closes behind one on the same line, at the first place that it can. Takes time in
    proportion to the text, whatever it is: a pattern that looks for the end of each mark would not.
    """
    places = {mark: [m.start() for m in closing.finditer(text)] for mark, closing in _CLOSING.items() if mark in text}
    if not places:
        return text
    out: list[str] = []
    at, line_end = 0, -1
    search = _OPENING.search(text)
    while search is not None:
        begin = search.start()
        if line_end < begin:
            line_end = text.find("\n", begin)
            line_end = len(text) if line_end < 0 else line_end
        mark, end = _closed(search.group(), begin, line_end, places)
        if mark:
            out += [text[at:begin], text[begin + len(mark) : end]]
            at = end + len(mark)
        search = _OPENING.search(text, at if mark else begin + 1)
    return "".join([*out, text[at:]])


def _closed(opening: str, begin: int, line_end: int, places: dict[str, list[int]]) -> tuple[str, int]:
    """The longest mark at `begin` that is closed on its line, and where; "" for none."""
    for size in range(len(opening), 0, -1):
        mark = opening[:size]
        known = places.get(mark, [])
        k = bisect_left(known, begin + size + 1)
        if k < len(known) and known[k] < line_end:
            return mark, known[k]
    return "", -1
