"""Whisper's vocabulary: the text of each token, and the ids of the special tokens.

Read from a Hugging Face folder: `tokenizer.json`, or the older `vocab.json` with `added_tokens.json`. Only decodes
tokens, so merges are not needed. Tokens are byte-level: GPT-2's alphabet has one letter per byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.errors import WeightsError
from models.weights.loading import fetch_again, read_json
from models.weights.manifest import missing_error

TIMESTAMPS = 1501  # <|0.00|> … <|30.00|>, 20 ms apart, after <|notimestamps|> (Radford et al. 2022, section 2.3)
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # its name in current and in older files


class Vocabulary:
    """Token ids of a Whisper. languages: ISO 639 code → id. tasks: `transcribe` and `translate` → id."""

    def __init__(self, words: Mapping[str, int], where: Path | str = "the vocabulary") -> None:
        """words: text → id of all tokens, also the special ones. Raises WeightsError: a special token is missing."""

        def id_of(*names: str) -> int:
            for name in names:
                if name in words:
                    return words[name]
            raise WeightsError(f"{where} has no token {names[0]}.", "Use a Whisper model's tokenizer files.")

        self.end, self.start = id_of("<|endoftext|>"), id_of("<|startoftranscript|>")
        self.no_timestamps, self.no_speech = id_of("<|notimestamps|>"), id_of(*NO_SPEECH)
        self.tasks = {"transcribe": id_of("<|transcribe|>"), "translate": id_of("<|translate|>")}
        self.first_timestamp = self.no_timestamps + 1
        self.size = self.first_timestamp + TIMESTAMPS
        self.languages = {
            match[1]: number
            for text, number in words.items()
            if (match := LANGUAGE.fullmatch(text)) and self.start < number < min(self.tasks.values())
        }
        self._texts = {number: text for text, number in words.items() if number < self.end}

    @property
    def prompt_only(self) -> list[int]:
        """Tokens that occur only in prompts: from <|startoftranscript|> to <|notimestamps|>."""
        return list(range(self.start, self.first_timestamp))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens. Special tokens are skipped; invalid UTF-8 becomes �."""
        letters = "".join(self._texts.get(token, "") for token in tokens)
        return bytes(_BYTES[letter] for letter in letters if letter in _BYTES).decode("utf-8", "replace")


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a Whisper folder. Raises WeightsError: a file is missing or damaged."""
    path = folder / "tokenizer.json"
    if path.is_file():
        found = read_json(path)
        try:
            added = {entry["content"]: int(entry["id"]) for entry in found["added_tokens"]}
            words = {**found["model"]["vocab"], **added}
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} is not a Whisper tokenizer.", fetch_again(path)) from error
        return Vocabulary(words, path)
    path = folder / "vocab.json"
    if not path.is_file():
        raise missing_error(
            folder,
            f"{folder} contains neither tokenizer.json nor vocab.json",
            "Put the tokenizer's files next to the weights: they map tokens to text.",
        )
    added_path = folder / "added_tokens.json"
    added = read_json(added_path) if added_path.is_file() else {}
    return Vocabulary({**read_json(path), **added}, path)


def _alphabet() -> dict[str, int]:
    """GPT-2's letter → byte: printable Latin-1 characters are themselves, the other bytes are 256, 257, … in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


_BYTES = _alphabet()
