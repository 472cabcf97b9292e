"""Whisper's vocabulary: what each token says, and the tokens that say nothing but mean something. Knows no network.

Read from the files of a Hugging Face folder: `tokenizer.json`, or the older `vocab.json` with `added_tokens.json`.
Nothing is tokenised here, so merges are not needed. Tokens are byte-level: in GPT-2's alphabet each byte is a letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.errors import WeightsError
from models.weights.loading import fetch_again, read_json
from models.weights.manifest import missing_error

TIMESTAMPS = 1501  # <|0.00|> … <|30.00|>, 20 ms apart, behind <|notimestamps|> (Radford et al. 2022, section 2.3)
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # its name in today's files, and in older ones


class Vocabulary:
    """Ids of a Whisper's tokens. `languages` maps ISO 639 codes to ids; `transcribe`, `translate` name the tasks."""

    def __init__(self, words: Mapping[str, int], where: Path | str = "the vocabulary") -> None:
        """words: every token's id by its text, special ones too. Raises WeightsError where one that is needed is not
        there."""

        def id_of(*names: str) -> int:
            for name in names:
                if name in words:
                    return words[name]
            raise WeightsError(f"{where} has no token {names[0]}.", "Use the tokenizer files of a Whisper.")

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
    def silent(self) -> list[int]:
        """Tokens that are asked with and never answered: from <|startoftranscript|> to <|notimestamps|>."""
        return list(range(self.start, self.first_timestamp))

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say; special ones, and bytes that are no UTF-8, are passed over or become �."""
        letters = "".join(self._texts.get(token, "") for token in tokens)
        return bytes(_BYTES[letter] for letter in letters if letter in _BYTES).decode("utf-8", "replace")


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a Whisper folder. Raises WeightsError, which names the files that are missing or broken."""
    path = folder / "tokenizer.json"
    if path.is_file():
        found = read_json(path)
        try:
            added = {entry["content"]: int(entry["id"]) for entry in found["added_tokens"]}
            words = {**found["model"]["vocab"], **added}
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} is no tokenizer of Whisper's kind.", fetch_again(path)) from error
        return Vocabulary(words, path)
    path = folder / "vocab.json"
    if not path.is_file():
        raise missing_error(
            folder,
            f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json",
            "Put the tokenizer's files beside the weights: without them tokens cannot be turned into words.",
        )
    more = folder / "added_tokens.json"
    return Vocabulary({**read_json(path), **(read_json(more) if more.is_file() else {})}, path)


def _alphabet() -> dict[str, int]:
    """GPT-2's letter of each byte: printable Latin-1 stands for itself, the rest for 256, 257 … in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


_BYTES = _alphabet()
