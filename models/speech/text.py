"""Normalises written text for speech and splits it into sentences.

Numbers, money, times, dates, units and abbreviations stay as written: the voice's own front end reads them in context
("1984" as a year or in "1984 kg"; "Dr. Smith" and "Elm Dr."), which early expansion would remove.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache

MAX_PASSES = 8  # each pass removes one layer of nested marks ("**_word_**")
MAX_MARKS = 30  # consecutive combining marks (UAX #15, stream-safe text): sorting them takes quadratic time
MAX_SENTENCE_CHARS = 200  # about 13 s of speech; below a voice's limit of about 400 phonemes

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # ！ to ～ are ASCII + 0xFEE0
_ENGLISH_SIGNS = str.maketrans({"≈": " about ", "≤": " at most ", "≥": " at least ", "№": "number "})
_CHARACTERS = str.maketrans(
    {
        **{chr(wide): chr(ascii_code) for wide, ascii_code in _FULL_WIDTH.items()},
        **dict.fromkeys("‘’‚‛′ʼ`´", "'"),
        **dict.fromkeys("“”„‟″«»「」『』", '"'),
        **dict.fromkeys("‐‑‒−", "-"),  # hyphens and the minus sign
        "º": "°",
        **dict.fromkeys("―⸺⸻", "—"),
        **dict.fromkeys("。｡", ". "),
        **dict.fromkeys("、､", ", "),
        **dict.fromkeys("⋯…", "… "),
        "！": "! ",
        "？": "? ",
        "，": ", ",
        **dict.fromkeys("\u2028\u2029\x85\x0b\x0c", "\n"),
        "\u3000": " ",
        "℃": "°C",
        "℉": "°F",
        "⁄": "/",
        "ﬀ": "ff",
        "ﬁ": "fi",
        "ﬂ": "fl",
        "ﬃ": "ffi",
        "ﬄ": "ffl",
    }
)
_SPOKEN_SYMBOLS = frozenset("°©")  # symbols of Unicode category So that are read aloud; the others are emoji
_SILENT_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "So", "Sk", "Me"})

_UNPRINTABLE = frozenset({"Cc", "Cs"})
_NONCHARACTERS = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)) + "]"
)
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>")
_MARKDOWN_LINK = re.compile(r"!?\[([^\[\]\n]+)\]\((?!/)[^)\s\[]*\)")  # keeps phoneme notation: `[word](/ipa/)`
_MARKDOWN_LINE = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]+|[-*+•‣◦·][ \t]+)", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+(?=\S)(.*[^\s.!?…:])[ \t]*$", re.MULTILINE)
_SCHEME = re.compile(r"\bhttps?://(?:www\.)?|\bwww\.", re.IGNORECASE)
_ADDRESS_PART = re.compile(r"\.(?:((?:com|org|net|edu|gov|io|ai|dev|app|co|uk|eu|de|info)\b)?[a-z0-9-]*)")
_ADDRESS_DOT = re.compile(r"(?<=[a-z0-9])\.")
_MINUS = re.compile(r"(?<=\d)\s?−\s?(?=\d)")
_ABOUT = re.compile(r"(?<!\S)~\s?(?=\d)")
_ROUND_THE_CLOCK = re.compile(r"\b24/7\b")
_SPACED_HYPHEN = re.compile(r"(?<=[^\W\d_]) - (?=[^\W\d_])")
_MICRO_UNIT = re.compile(r"(?<=\d)\s?[μµ]([mgsl])\b")
_MICRO_UNITS = {"m": " micrometers", "g": " micrograms", "s": " microseconds", "l": " microliters"}
_GREEK_LETTER = re.compile(r"(?<![^\W\d_])[Α-ΩΆ-Ώα-ωά-ώ](?![^\W\d_])")
_EMPHASIS_OPENING = re.compile(r"(?<!\w)(?:\*{1,3}|_{1,3}|~~)(?=\S)")
_EMPHASIS_MARKS = ("***", "**", "*", "___", "__", "_", "~~")
_EMPHASIS_CLOSING = {mark: re.compile(rf"(?<=\S)(?={re.escape(mark)}(?!\w))") for mark in _EMPHASIS_MARKS}
_HOUR_RANGE = re.compile(r"(?<=[0-9AaPp][Mm])\s?[-–—]\s?(?=\d)")
_LIST_OR_PARAGRAPH = re.compile(
    r"(?<=[^\s.!?…:;,—-])[ \t]*\n(?=[ \t]*(?:\n|[-*+•‣◦·][ \t]|\d{1,2}[.)][ \t]|#{1,6}[ \t]))"
)

_REPEATED_MARKS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?:\.\s?){2,}\.|\.{2,}|(?:…\s?){2,}"), "… "),
    (re.compile(r"[!?]+"), lambda marks: "?" if "?" in marks.group() else "!"),
    (re.compile(r"([,;:])(?:\s*[,;:])+"), r"\1"),
    (re.compile(r"\s*-{2,}\s*"), " — "),
)
SPACE_BEFORE_MARK = re.compile(r"\s+(?=[,.;:!?…](?:\s|$))")


def _words(listing: str) -> frozenset[str]:
    return frozenset(listing.split())


_TITLES = _words("Mr Mrs Ms Dr Prof St Mt Ft Gen Gov Sen Rep Capt Lt Col Sgt Cmdr Rev Hon Pres Supt Fr Messrs Mme")
_NEVER_LAST = _words("e.g i.e eg ie cf vs approx viz resp incl")
_BEFORE_NUMBERS = _words("fig figs vol no nos pp ch jan feb mar apr jun jul aug sep sept oct nov dec")
_MAY_BE_LAST = _words("etc inc ltd corp co bros jr sr dept est a.m p.m ave blvd rd al ca")
_INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
_SENTENCE_END = re.compile(r"(?<![.!?…؟۔।])[.!?…؟۔।]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”’]*")
_AFTER_END = re.compile(r"\s*[\"'“‘(\[]*")
MAX_ABBREVIATION_CHARS = 100  # only the last characters of a longer word before a full stop are examined
_CLAUSE_END = re.compile(r"[,;:—–…][\"'”’)\]]*\s|\s[—–-](?=\s)|\)\s")


def normalise(text: str, language: str = "en") -> str:
    """Convert text to a plain form for speech: one line, NFC, ASCII quotes, single spaces.

    Removes control characters, emoji, HTML tags and Markdown marks; unifies dashes, ellipses and full-width forms; adds
    a full stop to list items and paragraphs without one; removes the scheme of URLs. Symbols become words ("dot",
    "minus") only if `language` is `en`. Idempotent: the caller and the voice may both normalise a text.
    """
    for _ in range(MAX_PASSES):
        plain = _normalise_once(text, english=language == "en")
        if plain == text:
            break
        text = plain
    return text


def _normalise_once(text: str, english: bool) -> str:
    # 1. Unify characters; line breaks still separate paragraphs and list items here.
    text = _composed(text)
    if english:
        text = _MINUS.sub(" minus ", text).translate(_ENGLISH_SIGNS)
    text = text.translate(_CHARACTERS).replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(_speakable_character(c) for c in text)
    # 2. Replace markup and layout by words and full stops.
    text = _TAG.sub(" ", text)
    text = _MARKDOWN_LINK.sub(r"\1", text)
    text = _LIST_OR_PARAGRAPH.sub(".\n", text)
    text = _MARKDOWN_LINE.sub("", _HEADING.sub(r"\1.", text))
    text = _without_emphasis(text)
    text = _SPACED_HYPHEN.sub(" — ", _SCHEME.sub("", text))
    # 3. Replace symbols by words.
    if english:
        text = _with_spoken_dots(text)
        text = _HOUR_RANGE.sub(" to ", text)
        text = _ABOUT.sub("about ", _ROUND_THE_CLOCK.sub("24 7", text))
        text = _MICRO_UNIT.sub(lambda unit: _MICRO_UNITS[unit.group(1)], text)
        text = _GREEK_LETTER.sub(lambda letter: _greek_name(letter.group()), text)
    # 4. Collapse spaces, then repeated marks: the patterns would examine every space of a run.
    text = " ".join(text.split())
    for pattern, replacement in _REPEATED_MARKS:
        text = pattern.sub(replacement, text)
    text = SPACE_BEFORE_MARK.sub("", " ".join(text.split()))
    return _composed(text)


def printable(text: str) -> str:
    """Remove control characters, unpaired surrogates, noncharacters and bidirectional controls.

    Bidirectional controls reverse the order on screen, which could make a transcript read differently from what was
    spoken. Characters that are unknown to Python's Unicode tables (new emoji) stay.
    """
    text = _NONCHARACTERS.sub("", text)
    return "".join(
        c for c in text if c in "\n\t" or not (c in _BIDI_CONTROLS or unicodedata.category(c) in _UNPRINTABLE)
    )


def split_sentences(text: str, max_chars: int = MAX_SENTENCE_CHARS) -> list[str]:
    """Split text into sentences of at most `max_chars` characters. Only white space at the cuts is lost.

    A longer sentence is cut after a clause mark, else at a space, else inside the word.
    """
    assert max_chars >= 1, max_chars
    pieces: list[str] = []
    start = 0
    for mark in _SENTENCE_END.finditer(text):
        if _ends_sentence(text, mark):
            pieces += _cut_to_length(text[start : mark.end()].strip(), max_chars)
            start = mark.end()
    return pieces + _cut_to_length(text[start:].strip(), max_chars)


def _composed(text: str) -> str:
    """NFC of the text; a letter keeps at most MAX_MARKS combining marks."""
    if text.isascii():
        return text
    kept, row = [], 0
    for c in text:
        row = row + 1 if unicodedata.combining(c) else 0
        if row <= MAX_MARKS:
            kept.append(c)
    return unicodedata.normalize("NFC", "".join(kept))


def _without_emphasis(text: str) -> str:
    """Remove the marks of *word*, **word**, ***word***, _word_ … and ~~word~~; of nested marks, only the outer ones.

    A mark opens before a word and closes at the first possible place after a word on the same line. Runs in linear
    time for any text; a regular expression that searches the end of each mark would not.
    """
    places = {
        mark: [m.start() for m in closing.finditer(text)] for mark, closing in _EMPHASIS_CLOSING.items() if mark in text
    }
    if not places:
        return text
    out: list[str] = []
    at, line_end = 0, -1
    search = _EMPHASIS_OPENING.search(text)
    while search is not None:
        begin = search.start()
        if line_end < begin:
            line_end = text.find("\n", begin)
            line_end = len(text) if line_end < 0 else line_end
        mark, end = _closed_mark(search.group(), begin, line_end, places)
        if mark:
            out += [text[at:begin], text[begin + len(mark) : end]]
            at = end + len(mark)
        search = _EMPHASIS_OPENING.search(text, at if mark else begin + 1)
    return "".join([*out, text[at:]])


def _closed_mark(opening: str, begin: int, line_end: int, places: dict[str, list[int]]) -> tuple[str, int]:
    """The longest mark at `begin` that is closed on its line, and the place of the closing mark; ("", -1) for none."""
    for size in range(len(opening), 0, -1):
        mark = opening[:size]
        known = places.get(mark, [])
        k = bisect_left(known, begin + size + 1)
        if k < len(known) and known[k] < line_end:
            return mark, known[k]
    return "", -1


def _with_spoken_dots(text: str) -> str:
    """Replace the dots in host names by " dot ": those whose following labels end with a known domain (docs.ray.io)."""
    leading: set[int] = set()
    for part in reversed(list(_ADDRESS_PART.finditer(text))):  # from the end, so that each label is examined once
        if part[1] is not None or (part[0] != "." and part.end() in leading):
            leading.add(part.start())
    return _ADDRESS_DOT.sub(lambda dot: " dot " if dot.start() in leading else ".", text)


@lru_cache(maxsize=4096)
def _speakable_character(c: str) -> str:
    category = unicodedata.category(c)
    if c == "\n" or c in _SPOKEN_SYMBOLS:
        return c
    if category in ("Zs", "Zl", "Zp") or c == "\t":
        return " "
    if category == "Cf" or c in "\ufe0e\ufe0f":  # joiners, direction marks, variation selectors: inside words
        return ""
    if category in _SILENT_CATEGORIES and not (category == "Sk" and c == "^"):
        return "" if category == "Me" else " "
    return c


def _greek_name(letter: str) -> str:
    """π → pi: the name of a Greek letter that stands alone as a symbol."""
    words = unicodedata.name(letter).split()  # GREEK SMALL LETTER PI, GREEK CAPITAL LETTER ALPHA WITH TONOS
    return words[words.index("LETTER") + 1].lower().replace("lamda", "lambda").replace("final", "sigma")


def _ends_sentence(text: str, mark: re.Match[str]) -> bool:
    """False if the mark belongs to an abbreviation, an initial or a hesitation and does not end a sentence."""
    after = _AFTER_END.match(text, mark.end())
    rest = text[after.end() : after.end() + 1] if after else ""
    stop = mark.group().rstrip("\"'”’)]")
    if not rest or stop[0] in "。！？؟۔।":
        return True
    if rest in ",;:—–" or (rest.islower() and (stop != mark.group() or "…" in stop)):
        return False  # "Stop!" he said. Well… maybe.
    if stop != ".":
        return True
    before = text[max(0, mark.start() - MAX_ABBREVIATION_CHARS) : mark.start()].split()
    word = before[-1].lstrip("\"'“‘([") if before else ""
    if rest.islower() and len(word) < 4:  # a short word before a lower-case letter is usually an abbreviation
        return False
    if word in _TITLES or word.lower() in _NEVER_LAST:
        return False
    if word.lower() in _BEFORE_NUMBERS and rest.isdigit():
        return False
    if word.lower() in _MAY_BE_LAST:
        return not rest.isdigit()
    return not (_INITIALS.fullmatch(word) and word[0].isupper() and word != "I")  # "J. K. Rowling", "the U.S. Army"


def sentence_may_continue(text: str) -> bool:
    """Whether the mark at the end of `text` may not end a sentence: an abbreviation, an initial, "3." of "3.5"."""
    bare = text.rstrip("\"'”’)]")
    if bare.endswith(".") and bare[-2:-1].isdigit():
        return True
    # a letter and a digit in turn as the beginning of what may follow
    continued = [(mark, f"{text} {c}") for c in "A1" for mark in _SENTENCE_END.finditer(f"{text} {c}", len(bare) - 1)]
    return not all(_ends_sentence(whole, mark) for mark, whole in continued)


def _cut_to_length(sentence: str, max_chars: int) -> list[str]:
    pieces = []
    while len(sentence) > max_chars:
        cut = _last_cut(sentence, max_chars)
        pieces.append(sentence[:cut].rstrip())
        sentence = sentence[cut:].lstrip()
    return [*pieces, sentence] if sentence else pieces


def _last_cut(sentence: str, max_chars: int) -> int:
    """Where to cut: after the last clause mark in the last two thirds, else at the last space, else at `max_chars`."""
    head = sentence[: max_chars + 1]
    clauses = [mark.end() for mark in _CLAUSE_END.finditer(head) if max_chars // 3 <= mark.end() <= max_chars]
    if clauses:
        return clauses[-1]
    space = head.rfind(" ")
    return space if space > 0 else max_chars
