"""Voices of coqui-tts, the maintained Coqui TTS: XTTS, which clones a voice from a recording, VITS, and other models.

XTTS streams: a sentence's first piece leaves before the rest is made. The package is an extra, imported by `load`
alone; facts of its interface are those of coqui-tts 0.28 (`TTS.api.TTS`, `TTS.tts.models.xtts.Xtts`). Its code is
MPL-2.0; each model has its own licence: XTTS's weights are under the Coqui Public Model License, non-commercial.
"""

from __future__ import annotations

import importlib
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ConfigError, InputError, StageError, WeightsError
from models.runtime.ids import check_id
from models.speech.audio import decode_audio
from models.speech.text import MAX_SENTENCE_CHARS, check_text, split_sentences
from models.tts.streaming import speech_pieces
from models.types import Float32, Speech

XTTS = "tts_models/multilingual/multi-dataset/xtts_v2"
SPEEDS = (0.5, 2.0)
ENGINE_MAX_CHARS = 100_000  # the TTS stage's own limit is lower
MIN_REFERENCE_S = 3.0  # a shorter recording does not carry a voice (Xtts.synthesize's docstring)
CLONED = "cloned"  # the name of the voice of `speaker_wav`
ONLY = "default"  # the name of the voice of a model that has one
GENERATION = ("temperature", "length_penalty", "repetition_penalty", "top_k", "top_p")  # as XTTS's config tunes them


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker that the model knows by name, or recordings to clone; neither for a model of one voice."""

    speaker: str | None = None
    recordings: tuple[str, ...] = ()


class CoquiTTS:
    """A `TTSEngine`. Each sentence is seeded: the same text and voice give the same samples on the same machine."""

    def __init__(self, tts: Any, language: str, voices: dict[str, Voice], stream: bool) -> None:
        self.sample_rate_hz = int(tts.synthesizer.output_sample_rate)
        self._tts = tts
        self._model = tts.synthesizer.tts_model
        self._language = language
        self._voices = voices
        self._is_xtts = hasattr(self._model, "inference_stream")
        self._stream = stream and self._is_xtts
        self._latents: dict[Voice, tuple[Any, Any]] = {}
        self._lock = threading.RLock()  # a forgotten stream is closed wherever it is collected, be it in here
        self._take: _Take | None = None

    @classmethod
    def load(
        cls,
        model: str = XTTS,
        language: str | None = None,
        speaker_wav: str | list[str] | None = None,
        voices_dir: str | None = None,
        voice: str | None = None,
        device: str = "cpu",
        stream: bool = True,
        accept_cpml: bool = False,
        threads: int | None = None,
    ) -> CoquiTTS:
        """Load a model by its name (`tts --list_models`; fetched on first use) or from a folder with a config.json.

        language: of a model that has several; English by default. speaker_wav: recordings of the voice to clone, which
        is then called `cloned`. voices_dir: a folder of WAV files, each a voice to clone, named by its file. voice: the
        default. device: `cpu` or `cuda`. stream: whether XTTS gives a sentence out in pieces. accept_cpml: agree to the
        licence of XTTS's weights, as COQUI_TOS_AGREED=1 does. threads: of torch, in the whole process.
        Raises ConfigError, WeightsError, AudioError for a recording that cannot be read, IdError for a voice's name.
        """
        tts = _load_model(model, device, accept_cpml, threads)
        chosen = _choose_language(tts, language)
        voices = _collect_voices(tts, speaker_wav, voices_dir)
        if voice is not None:
            if voice not in voices:
                raise ConfigError(f"There is no voice {voice!r}.", f"Use one of {', '.join(voices)}.")
            voices = {voice: voices[voice], **voices}
        engine = cls(tts, chosen, voices, stream)
        if engine._is_xtts or chosen.startswith("en"):  # other models may know no Latin letter
            list(engine.speak("Warm up."))
        return engine

    def voices(self) -> list[str]:
        """Names that `speak` accepts; the first is the default."""
        return list(self._voices)

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        """Yield each sentence as it is made: with XTTS in pieces of whole seconds (models/tts/streaming.py), else whole.

        Raises TextError and InputError at the call, StageError at an item where the model fails.
        """
        if voice is not None and voice not in self._voices:
            raise InputError(f"There is no voice {voice!r}.", f"Use one of {', '.join(self._voices)}.")
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise InputError(f"The speed {speed} is out of range.", f"Use a speed from {SPEEDS[0]} to {SPEEDS[1]}.")
        if speed != 1.0 and not self._is_xtts and not hasattr(self._model, "length_scale"):
            raise InputError("This voice's model has one speed only.", "Leave the speed at 1.")
        chosen = self._voices[voice if voice is not None else next(iter(self._voices))]
        sentences = split_sentences(check_text(text, ENGINE_MAX_CHARS, self._language.split("-")[0]), self._longest())
        return self._speak(sentences, chosen, speed)

    def _speak(self, sentences: list[str], voice: Voice, speed: float) -> Iterator[Speech]:
        for index, sentence in enumerate(sentences):
            last = index == len(sentences) - 1
            blocks = self._sound(sentence, voice, speed)
            yield from speech_pieces(blocks, self.sample_rate_hz, sentence, last, speed, stream=self._stream)

    def _longest(self) -> int:
        """Characters of a sentence: XTTS cuts off what goes beyond its limit, 71 for Japanese to 273 for French."""
        limits = getattr(getattr(self._model, "tokenizer", None), "char_limits", {})
        return min(MAX_SENTENCE_CHARS, int(limits.get(self._language.split("-")[0], MAX_SENTENCE_CHARS)))

    def _sound(self, sentence: str, voice: Voice, speed: float) -> Iterator[Float32]:
        """Blocks of one sentence, float32 mono (n,). XTTS keeps the state of a stream in the model, so a stream that is
        still going on for another utterance is made to its end before this one begins."""
        with self._lock:
            if self._take is not None:
                self._take.complete()
            take = self._take = _Take(self._make(sentence, voice, speed))
        try:
            while True:
                with self._lock:
                    block = next(take, None)
                if block is None:
                    return
                yield block
        finally:
            with self._lock:
                take.close()
                if self._take is take:
                    self._take = None

    def _make(self, sentence: str, voice: Voice, speed: float) -> Iterator[Float32]:
        import torch

        torch.manual_seed(zlib.crc32(sentence.encode()))
        try:
            if self._is_xtts:
                yield from self._xtts(sentence, voice, speed)
            else:
                yield self._whole(sentence, voice, speed)
        except Exception as error:
            raise StageError(
                f"The voice failed at {sentence[:40]!r}: {type(error).__name__}: {error}.",
                "Change the text, or look at the log of TTS.",
            ) from error

    def _xtts(self, sentence: str, voice: Voice, speed: float) -> Iterator[Float32]:
        latents, embedding = self._cloned(voice)
        settings = {key: getattr(self._model.config, key) for key in GENERATION}
        arguments = (sentence, self._language, latents, embedding)
        if not self._stream:
            yield np.asarray(self._model.inference(*arguments, speed=speed, **settings)["wav"], np.float32)
            return
        for chunk in self._model.inference_stream(*arguments, speed=speed, **settings):
            yield np.asarray(chunk.detach().cpu(), np.float32).reshape(-1)

    def _cloned(self, voice: Voice) -> tuple[Any, Any]:
        """What XTTS knows a voice by: GPT latents and speaker embedding, computed once a voice."""
        if voice not in self._latents:
            if voice.recordings:
                config = self._model.config
                self._latents[voice] = self._model.get_conditioning_latents(
                    audio_path=list(voice.recordings),
                    max_ref_length=config.max_ref_len,
                    gpt_cond_len=config.gpt_cond_len,
                    gpt_cond_chunk_len=config.gpt_cond_chunk_len,
                    sound_norm_refs=config.sound_norm_refs,
                )
            else:
                latents, embedding = self._model.speaker_manager.speakers[voice.speaker].values()
                self._latents[voice] = (latents, embedding)
        return self._latents[voice]

    def _whole(self, sentence: str, voice: Voice, speed: float) -> Float32:
        """A sentence of a model that does not stream. VITS takes its pace from `length_scale`: larger is slower."""
        scale = getattr(self._model, "length_scale", None)
        if scale is not None:
            self._model.length_scale = scale / speed
        try:
            samples = self._tts.tts(
                text=sentence,
                speaker=voice.speaker,
                language=self._language if self._tts.is_multi_lingual else None,
                speaker_wav=list(voice.recordings) or None,
                split_sentences=False,
            )
        finally:
            if scale is not None:
                self._model.length_scale = scale
        return np.asarray(samples, np.float32).reshape(-1)


class _Take:
    """One sentence's blocks, made as they are asked for or all at once by `complete`; an error waits for its caller."""

    def __init__(self, blocks: Iterator[Float32]) -> None:
        self._blocks = blocks
        self._ready: deque[Float32] = deque()
        self._error: StageError | None = None

    def __iter__(self) -> _Take:
        return self

    def __next__(self) -> Float32:
        if self._ready:
            return self._ready.popleft()
        if self._error is not None:
            raise self._error
        return next(self._blocks)

    def complete(self) -> None:
        try:
            self._ready.extend(self._blocks)
        except StageError as error:
            self._error = error

    def close(self) -> None:
        self._blocks.close()  # type: ignore[attr-defined]


def _load_model(model: str, device: str, accept_cpml: bool, threads: int | None) -> Any:
    try:
        torch, api = importlib.import_module("torch"), importlib.import_module("TTS.api")
    except ImportError as error:
        raise ConfigError(
            f"coqui-tts cannot be imported: {str(error).strip().splitlines()[0]}", "pip install warmtalk[coqui]"
        ) from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"The voice is to run on {device!r}, but torch sees no GPU.", "Use device: cpu.")
    if threads is not None:
        torch.set_num_threads(threads)
    folder = Path(model)
    local = folder.is_absolute() or folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise WeightsError(f"There is no config.json in {model}.", "Name a model, or the folder of one.")
    if not local:
        _check_licence(model, accept_cpml)
    source = {"model_path": str(folder), "config_path": str(folder / "config.json")} if local else {"model_name": model}
    try:
        return api.TTS(**source, progress_bar=False).to(device)
    except Exception as error:
        raise WeightsError(
            f"The voice model {model!r} could not be loaded: {type(error).__name__}: {error}.",
            "Check its name (`tts --list_models`) and the connection, or name a folder with its files.",
        ) from error


def _check_licence(model: str, accept_cpml: bool) -> None:
    """coqui-tts asks for agreement on a terminal, which a replica does not have: ask in the config instead."""
    if "xtts" not in model:
        return
    if accept_cpml:
        os.environ["COQUI_TOS_AGREED"] = "1"
    if os.environ.get("COQUI_TOS_AGREED") != "1":
        raise ConfigError(
            "XTTS's weights are under the Coqui Public Model License (CPML): for non-commercial use only.",
            "Read it at https://coqui.ai/cpml; to agree, set accept_cpml: true in the options of TTS.",
        )


def _choose_language(tts: Any, language: str | None) -> str:
    manager = getattr(tts.synthesizer.tts_model, "language_manager", None)
    known = list(tts.languages or (manager.language_names if manager else None) or [])
    if language is None:
        return "en" if "en" in known or not known else str(known[0])
    if known and language not in known:
        raise ConfigError(f"The model does not speak {language!r}.", f"Use one of {', '.join(known)}.")
    return language


def _collect_voices(tts: Any, speaker_wav: str | list[str] | None, voices_dir: str | None) -> dict[str, Voice]:
    """Voices by name: the one to clone, those of the folder, then the model's own."""
    voices: dict[str, Voice] = {}
    if speaker_wav:
        paths = [speaker_wav] if isinstance(speaker_wav, str) else speaker_wav
        voices[CLONED] = Voice(recordings=tuple(_recording(Path(path)) for path in paths))
    if voices_dir is not None:
        folder = Path(voices_dir)
        if not folder.is_dir():
            raise ConfigError(f"There is no folder of voices {voices_dir!r}.", "Make it, with a WAV file a voice.")
        for path in sorted(folder.glob("*.wav")):
            voices[check_id(path.stem, "voice id")] = Voice(recordings=(_recording(path),))
    if voices and not tts.synthesizer.tts_model.config.supports_cloning:
        raise ConfigError("The model cannot clone a voice.", f"Use {XTTS}, or leave out speaker_wav and voices_dir.")
    model = tts.synthesizer.tts_model
    is_xtts = hasattr(model, "inference_stream")  # its `speakers` would name voices that coqui-tts cached, too
    own = getattr(model.speaker_manager, "speaker_names", []) if is_xtts else tts.speakers or []
    for name in own:
        voices.setdefault(name, Voice(speaker=name))
    if not voices and is_xtts:
        raise ConfigError("The model has no voice of its own.", "Give a recording as speaker_wav.")
    return voices or {ONLY: Voice()}


def _recording(path: Path) -> str:
    """The path of a recording that can be cloned. Raises AudioError where it is unreadable, ConfigError where short."""
    samples, rate_hz = decode_audio(path)
    if len(samples) < MIN_REFERENCE_S * rate_hz:
        raise ConfigError(
            f"The recording {path.name!r} lasts {len(samples) / rate_hz:.1f} s.",
            f"Use at least {MIN_REFERENCE_S:g} s of clear speech; 6 to 30 s is best.",
        )
    return str(path)
