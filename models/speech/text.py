"""Makes written text fit to be spoken, and cuts it into sentences. Knows nothing of voices, sound or sessions.

Numbers, money, times, dates, units and abbreviations stay as written: a voice's own front end reads them in context
("1984" the year, "1984 kg", "Dr. Smith" against "Elm Dr."), and words put in too early would take that context away.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from models.errors import TextError
from models.speech.marks import without_emphasis

MAX_TEXT_CHARS = 2000  # about two minutes of speech
MARKUP_ALLOWANCE = 10  # written characters, markup and spaces included, for one that is spoken
MAX_PASSES = 8  # marks inside marks ("**_word_**") come off one layer a pass
MAX_MARKS = 30  # combining marks in a row (UAX #15, stream-safe text): to sort more of them takes their number squared
MAX_SENTENCE_CHARS = 200  # about 13 s of speech, and below a voice's limit of some 400 phonemes

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # ！ to ～ are ASCII moved up by 0xFEE0
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
_SPOKEN_SYMBOLS = frozenset("°©")  # of Unicode's "other symbols", those that have a reading; the rest is emoji and art
_SILENT_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "So", "Sk", "Me"})
_SPOKEN_SCRIPTS = ("LATIN", "MICRO", "FEMININE", "MASCULINE", "ANGSTROM", "OHM", "KELVIN", "MODIFIER LETTER")

_UNPRINTED = frozenset({"Cc", "Cs"})
_NONCHARACTERS = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)) + "]"
)
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # Unicode's bidi embeddings

_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>")
_MARKDOWN_LINK = re.compile(r"!?\[([^\[\]\n]+)\]\((?!/)[^)\s\[]*\)")  # `[word](/ipa/)` is a voice's own notation: kept
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
_SPACE_BEFORE_MARK = re.compile(r"\s+(?=[,.;:!?…](?:\s|$))")


def _words(listing: str) -> frozenset[str]:
    return frozenset(listing.split())


_TITLES = _words("Mr Mrs Ms Dr Prof St Mt Ft Gen Gov Sen Rep Capt Lt Col Sgt Cmdr Rev Hon Pres Supt Fr Messrs Mme")
_NEVER_LAST = _words("e.g i.e eg ie cf vs approx viz resp incl")
_BEFORE_NUMBERS = _words("fig figs vol no nos pp ch jan feb mar apr jun jul aug sep sept oct nov dec")
_BEFORE_SMALL = _words("etc inc ltd corp co bros jr sr dept est a.m p.m ave blvd rd al ca")
_INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
_SENTENCE_END = re.compile(r"(?<![.!?…؟۔।])[.!?…؟۔।]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”’]*")
_BEHIND_END = re.compile(r"\s*[\"'“‘(\[]*")
LONGEST_ABBREVIATION = 100  # characters; of a longer word before a full stop only the end is looked at
_CLAUSE_END = re.compile(r"[,;:—–…][\"'”’)\]]*\s|\s[—–-](?=\s)|\)\s")


def normalise(text: str, language: str = "en") -> str:
    """The same words in plain, speakable form: one line, NFC, ASCII quotes, single spaces.

    Control characters, emoji, HTML tags and Markdown marks go; dashes, ellipses and full-width forms are mapped; a
    list item or paragraph without a full stop gets one; addresses lose their scheme and say "dot". Idempotent, so a
    text may be normalised by the caller and by the voice. Signs become words ("dot", "minus") in English only.
    """
    for _ in range(MAX_PASSES):
        plain = _normalise_once(text, english=language == "en")
        if plain == text:
            break
        text = plain
    return text


def _normalise_once(text: str, english: bool) -> str:
    # 1. One form for each character, while line breaks still mean something.
    text = _composed(text)
    if english:
        text = _MINUS.sub(" minus ", text).translate(_ENGLISH_SIGNS)
    text = text.translate(_CHARACTERS).replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(_speakable_character(c) for c in text)
    # 2. Markup and layout become words and stops.
    text = _TAG.sub(" ", text)
    text = _MARKDOWN_LINK.sub(r"\1", text)
    text = _LIST_OR_PARAGRAPH.sub(".\n", text)
    text = _MARKDOWN_LINE.sub("", _HEADING.sub(r"\1.", text))
    text = without_emphasis(text)
    text = _SPACED_HYPHEN.sub(" — ", _SCHEME.sub("", text))
    # 3. Signs that have a reading.
    if english:
        text = _with_spoken_dots(text)
        text = _HOUR_RANGE.sub(" to ", text)
        text = _ABOUT.sub("about ", _ROUND_THE_CLOCK.sub("24 7", text))
        text = _MICRO_UNIT.sub(lambda unit: _MICRO_UNITS[unit.group(1)], text)
        text = _GREEK_LETTER.sub(lambda letter: _greek_name(letter.group()), text)
    # 4. Repeated marks and spaces. Spaces first: a mark is looked for behind each of a row of them.
    text = " ".join(text.split())
    for pattern, replacement in _REPEATED_MARKS:
        text = pattern.sub(replacement, text)
    text = _SPACE_BEFORE_MARK.sub("", " ".join(text.split()))
    return _composed(text)


def check_text(text: str, max_chars: int = MAX_TEXT_CHARS, language: str = "en") -> str:
    """Return `text` normalised and without the words of scripts that an English voice does not read.

    Such words are left out of a text that is mostly readable (a name in Chinese inside an English sentence). In any
    other `language`, or for "" where the voice is not known yet, every script passes.
    Raises TextError where the text is empty, too long, has nothing to speak, or is mostly in another script.
    """
    if not text.strip():
        raise TextError("The text is empty.", "Send at least one word.")
    plain = normalise(text[: MARKUP_ALLOWANCE * max_chars + 1], language)  # bounds the work that a caller can ask for
    length = len(text) if len(text) > MARKUP_ALLOWANCE * max_chars else len(plain)
    if length > max_chars:
        raise TextError(
            f"The text has {length} characters; at most {max_chars} are spoken at once.",
            "Send it in several requests of the same session: the video goes on where it stopped.",
        )
    letters = [c for c in plain if c.isalpha()]
    foreign = [c for c in letters if not _is_readable(c)] if language == "en" else []
    readable = len(letters) - len(foreign) + sum(c.isnumeric() and not c.isalpha() for c in plain)
    if foreign and len(foreign) >= readable:
        script = unicodedata.name(foreign[0], "UNKNOWN").split()[0].capitalize()
        script = {"Cjk": "Chinese"}.get(script, script)
        raise TextError(f"The text is written in {script} script, which the voice cannot read.", "Send it in English.")
    if not readable:
        raise TextError("The text has no letter or digit, so there is nothing to speak.", "Send at least one word.")
    if foreign:
        plain = " ".join("".join(c if not c.isalpha() or _is_readable(c) else " " for c in plain).split())
        plain = _SPACE_BEFORE_MARK.sub("", plain).lstrip(",;:.!?… ")
    return plain


def printable(text: str) -> str:
    """The text without what no screen shows and no file should keep: control characters, halves of characters.

    Also without what turns the direction of a line round, which could make a transcript read as what was not said. What
    Python does not know yet stays: emoji are younger than its tables.
    """
    text = _NONCHARACTERS.sub("", text)
    return "".join(c for c in text if c in "\n\t" or not (c in _TURNING or unicodedata.category(c) in _UNPRINTED))


def split_sentences(text: str, max_chars: int = MAX_SENTENCE_CHARS) -> list[str]:
    """Cut text into sentences of at most `max_chars` characters; no character but white space at the cuts is lost.

    A sentence over the cap is cut at clause marks, then at spaces, and a single word over the cap inside the word.
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
    """NFC, of a text that may pile up marks on a letter."""
    if text.isascii():
        return text
    kept, row = [], 0
    for c in text:
        row = row + 1 if unicodedata.combining(c) else 0
        if row <= MAX_MARKS:
            kept.append(c)
    return unicodedata.normalize("NFC", "".join(kept))


def _with_spoken_dots(text: str) -> str:
    """The dots inside addresses as words: those from which labels lead on to a known ending, as in docs.ray.io."""
    leading: set[int] = set()
    for part in reversed(list(_ADDRESS_PART.finditer(text))):  # from its end, so that each label is looked at once
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
    if category == "Cf" or c in "\ufe0e\ufe0f":  # joiners, direction marks, variation selectors: inside a word or emoji
        return ""
    if category in _SILENT_CATEGORIES and not (category == "Sk" and c == "^"):
        return "" if category == "Me" else " "
    return c


def _greek_name(letter: str) -> str:
    """π → pi: a Greek letter on its own is a symbol, and read by its name."""
    words = unicodedata.name(letter).split()  # GREEK SMALL LETTER PI, GREEK CAPITAL LETTER ALPHA WITH TONOS
    return words[words.index("LETTER") + 1].lower().replace("lamda", "lambda").replace("final", "sigma")


def _is_readable(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_SPOKEN_SCRIPTS)


def _ends_sentence(text: str, mark: re.Match[str]) -> bool:
    """Whether the end mark ends a sentence, or belongs to an abbreviation, an initial or a hesitation."""
    behind = _BEHIND_END.match(text, mark.end())
    rest = text[behind.end() : behind.end() + 1] if behind else ""
    stop = mark.group().rstrip("\"'”’)]")
    if not rest or stop[0] in "。！？؟۔।":
        return True
    if rest in ",;:—–" or (rest.islower() and (stop != mark.group() or "…" in stop)):
        return False  # "Stop!" he said. Well… maybe.
    if stop != ".":
        return True
    before = text[max(0, mark.start() - LONGEST_ABBREVIATION) : mark.start()].split()
    word = before[-1].lstrip("\"'“‘([") if before else ""
    if rest.islower() and len(word) < 4:  # a short word before a small letter is more often an abbreviation
        return False
    if word in _TITLES or word.lower() in _NEVER_LAST:
        return False
    if word.lower() in _BEFORE_NUMBERS and rest.isdigit():
        return False
    if word.lower() in _BEFORE_SMALL:
        return not rest.isdigit()
    return not (_INITIALS.fullmatch(word) and word[0].isupper() and word != "I")  # "J. K. Rowling", "the U.S. Army"


def _cut_to_length(sentence: str, max_chars: int) -> list[str]:
    pieces = []
    while len(sentence) > max_chars:
        cut = _last_cut(sentence, max_chars)
        pieces.append(sentence[:cut].rstrip())
        sentence = sentence[cut:].lstrip()
    return [*pieces, sentence] if sentence else pieces


def _last_cut(sentence: str, max_chars: int) -> int:
    """The best place within the cap: behind the last clause mark that leaves no stub, else at a space, else the cap."""
    head = sentence[: max_chars + 1]
    clauses = [mark.end() for mark in _CLAUSE_END.finditer(head) if max_chars // 3 <= mark.end() <= max_chars]
    if clauses:
        return clauses[-1]
    space = head.rfind(" ")
    return space if space > 0 else max_chars
