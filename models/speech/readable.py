"""What of a text can be spoken, and what is left out of it, with warnings for the person who sent it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from models.errors import TextError
from models.speech.text import SPACE_BEFORE_MARK, normalise, split_sentences
from models.types import SkippedText

MAX_TEXT_CHARS = 2000  # about two minutes of speech
MARKUP_ALLOWANCE = 10  # factor: written characters, including markup and spaces, per spoken character
# Why a passage is left out, as the predicate of a sentence; there is one more for each foreign script.
CODE = "is a block of code, which is not spoken"
NO_WORD = "has no letter or digit, so there is nothing to speak"
_REMEDIES = {CODE: "Send at least one word outside of it.", NO_WORD: "Send at least one word."}
MAX_REASONS = 10  # of one text; passages with a further reason are not reported

_SPOKEN_SCRIPTS = ("LATIN", "MICRO", "FEMININE", "MASCULINE", "ANGSTROM", "OHM", "KELVIN", "MODIFIER LETTER")
_RULE = re.compile(r"\s*(?:[-*_=]\s*){3,}")  # a horizontal rule of Markdown
_EMPTY_BRACKETS = re.compile(r"\(\s*\)|\[\s*\]")


def check_text(text: str, max_chars: int = MAX_TEXT_CHARS, language: str = "en") -> str:
    """What is spoken of `text`, normalised; see `readable_text`. Raises TextError."""
    return readable_text(text, max_chars, language)[0]


def readable_text(
    text: str, max_chars: int = MAX_TEXT_CHARS, language: str = "en"
) -> tuple[str, tuple[SkippedText, ...]]:
    """`text` normalised and without what cannot be spoken, and the passages that were left out.

    Left out are blocks of code, lines of symbols without a letter or digit, and, for English, sentences in scripts that
    an English voice cannot read. Of a sentence that is mostly readable, only such words are left out (a Chinese name in
    an English sentence). For any other `language`, and for "" if the voice is not known yet, all scripts are kept.

    Raises TextError: the text is empty, longer than `max_chars`, or nothing of it can be spoken.
    """
    if not text.strip():
        raise TextError("The text is empty.", "Send at least one word.")
    written = text[: MARKUP_ALLOWANCE * max_chars + 1]  # bounds the time that a caller can use
    spoken, skipped = _without_wordless(written)
    plain = normalise(spoken, language)
    length = len(text) if len(text) > len(written) else len(plain)
    if length > max_chars:
        raise TextError(
            f"The text has {length} characters; at most {max_chars} are allowed per request.",
            "Send it in several requests to the same session: the video continues where it stopped.",
        )
    if language == "en":
        plain, foreign = _without_foreign(plain)
        skipped += foreign
    if not any(c.isalnum() for c in plain):
        reason = skipped[-1].reason if skipped else NO_WORD
        raise TextError(f"The text {reason}.", _REMEDIES.get(reason, "Send it in English."))
    return plain, group_skipped(skipped)


def has_word(text: str) -> bool:
    """Whether the text has a letter or digit outside blocks of code, so that some voice can speak it."""
    return any(c.isalnum() for c in normalise(_without_wordless(text)[0]))


def has_symbol(text: str) -> bool:
    """Whether the text has emoji, arrows, stars or the like, which are no punctuation and not Markdown's layout."""
    return any(
        unicodedata.category(c) in ("So", "Sc") or (unicodedata.category(c) == "Sm" and not c.isascii()) for c in text
    )


def fence_of(line: str) -> str:
    """The mark of a line that opens a block of code in Markdown: ``` or ~~~ (CommonMark 0.31, 4.5); "" for others."""
    line = line.strip()
    mark = line[:3]
    return mark if mark in ("```", "~~~") and mark[0] not in line.lstrip(mark[0]) else ""


def closes_fence(line: str, mark: str) -> bool:
    """Whether the line closes the block of code that `mark` has opened. A block without such a line ends the text."""
    line = line.strip()
    return line.startswith(mark) and not line.strip(mark[0])


def _without_wordless(text: str) -> tuple[str, list[SkippedText]]:
    """The text without blocks of code and lines of symbols, and these. Lines of punctuation alone are layout."""
    kept: list[str] = []
    block: list[str] = []
    skipped: list[SkippedText] = []
    mark = ""
    for line in text.split("\n"):
        if mark:
            block.append(line)
            mark = "" if closes_fence(line, mark) else mark
        elif mark := fence_of(line):
            block = [line]
        elif _RULE.fullmatch(line):
            kept.append("")
        elif not any(c.isalnum() for c in line) and has_symbol(line):
            skipped.append(SkippedText.of(line, NO_WORD))
            kept.append("")
        else:
            kept.append(line)
        if block and not mark:
            skipped.append(SkippedText.of("\n".join(block), CODE))
            block = []
            kept.append("")  # an empty line: the paragraph before it ends here
    if block:
        skipped.append(SkippedText.of("\n".join(block), CODE))
    return "\n".join(kept), skipped


def _without_foreign(plain: str) -> tuple[str, list[SkippedText]]:
    """A normalised text without the sentences and words that an English voice cannot read, and these, in order."""
    if plain.isascii():
        return plain, []
    kept: list[str] = []
    skipped: list[SkippedText] = []
    for sentence in split_sentences(plain):
        foreign = [c for c in sentence if c.isalpha() and not _is_readable(c)]
        readable = sum(c.isalnum() for c in sentence) - len(foreign)
        if not foreign:
            kept.append(sentence)
            continue
        reason = f"is written in {_script_of(foreign[0])} script, which the voice cannot read"
        words = sentence.split() if len(foreign) >= readable else [w for w in sentence.split() if not _is_plain(w)]
        skipped.append(SkippedText.of(" ".join(words), reason))
        if len(foreign) < readable:
            rest = " ".join("".join(c if not c.isalpha() or _is_readable(c) else " " for c in sentence).split())
            kept.append(SPACE_BEFORE_MARK.sub("", _EMPTY_BRACKETS.sub("", rest)).lstrip(",;:.!?… "))
    return " ".join(kept), skipped


def _is_readable(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_SPOKEN_SCRIPTS)


def _is_plain(word: str) -> bool:
    return all(_is_readable(c) for c in word if c.isalpha())


def _script_of(letter: str) -> str:
    script = unicodedata.name(letter, "UNKNOWN").split()[0].capitalize()
    return {"Cjk": "Chinese"}.get(script, script)


# --- warnings


def group_skipped(skipped: Iterable[SkippedText]) -> tuple[SkippedText, ...]:
    """One entry per reason, in order, each with the first passage and the number of passages."""
    groups: dict[str, SkippedText] = {}
    for entry in skipped:
        known = groups.get(entry.reason)
        if known is not None:
            groups[entry.reason] = replace(known, count=known.count + entry.count)
        elif len(groups) < MAX_REASONS:
            groups[entry.reason] = entry
    return tuple(groups.values())


def skipped_for(text: str, error: TextError) -> SkippedText:
    """A passage that was left out because the voice raised `error` for it."""
    message = error.message.rstrip(".")
    subject = "The text "
    reason = message.removeprefix(subject) if message.startswith(subject) else f"cannot be spoken ({message})"
    return SkippedText.of(text, reason)


def skip_warnings(skipped: Iterable[SkippedText]) -> list[str]:
    """One sentence per reason: which passage was skipped, how many more, and why."""
    return [_warning(entry) for entry in group_skipped(skipped)]


def _warning(entry: SkippedText) -> str:
    if entry.count == 1:
        return f'Skipped "{entry.text}": it {entry.reason}.'
    more = "passage" if entry.count == 2 else "passages"
    return f'Skipped "{entry.text}" and {entry.count - 1} more {more}: each {entry.reason}.'
