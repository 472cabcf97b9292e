"""Voices of coqui-tts: XTTS, which clones a voice from a recording, VITS, and the other models of the package.

XTTS streams: the first piece of a sentence is ready before the rest. coqui-tts (the maintained fork of Coqui TTS) is an
optional package, imported only by `load`; the interface is that of version 0.28 (`TTS.api.TTS`,
`TTS.tts.models.xtts.Xtts`). Its code is MPL-2.0. Each model has its own licence: XTTS's weights are under the Coqui
Public Model License, non-commercial.
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
from models.speech.readable import check_text
from models.speech.text import MAX_SENTENCE_CHARS, split_sentences
from models.tts.base import ENGINE_MAX_CHARS, check_speed, check_voice
from models.tts.streaming import speech_pieces
from models.types import Float32, Speech

XTTS = "tts_models/multilingual/multi-dataset/xtts_v2"
SPEEDS = (0.5, 2.0)
MIN_REFERENCE_S = 3.0  # minimum length of a recording to clone (docstring of Xtts.synthesize)
CLONED = "cloned"  # voice name for `speaker_wav`
ONLY = "default"  # voice name for a model with a single voice
GENERATION = ("temperature", "length_penalty", "repetition_penalty", "top_k", "top_p")  # read from XTTS's config


@dataclass(frozen=True, slots=True)
class VoiceSource:
    """Where a voice comes from: a speaker name of the model, or recordings to clone; neither if it has one voice."""

    speaker: str | None = None
    recordings: tuple[str, ...] = ()


class CoquiTTS:
    """A `TTSEngine`. Sentences are seeded: the same text and voice give the same samples on the same machine."""

    def __init__(self, tts: Any, language: str, voices: dict[str, VoiceSource], stream: bool) -> None:
        self.sample_rate_hz = int(tts.synthesizer.output_sample_rate)
        self._tts = tts
        self._model = tts.synthesizer.tts_model
        self.language = language.split("-")[0]
        self._language = language
        self._voices = voices
        self._is_xtts = hasattr(self._model, "inference_stream")
        self._stream = stream and self._is_xtts
        self._latents: dict[VoiceSource, tuple[Any, Any]] = {}  # bounded by the number of voices
        self._lock = threading.RLock()  # reentrant: garbage collection may close an unused stream while it is held
        self._current: _SentenceStream | None = None

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
        """Load a model by name (`tts --list_models`; downloaded at first use) or from a folder with a config.json.

        language: for multilingual models; default English. speaker_wav: recordings of one voice to clone, available as
        voice `cloned`. voices_dir: a folder of WAV files; each is a voice to clone, with the file's name. voice: the
        default voice. device: `cpu` or `cuda`. stream: yield XTTS sentences in pieces. accept_cpml: accept the licence
        of XTTS's weights, like COQUI_TOS_AGREED=1. threads: torch threads of the whole process.

        Raises ConfigError: an option is wrong. WeightsError: the model cannot be loaded. AudioError: a recording cannot
        be decoded. IdError: a file name in `voices_dir` is not a valid id.
        """
        tts = _load_model(model, device, accept_cpml, threads)
        chosen = _choose_language(tts, language)
        voices = _collect_voices(tts, speaker_wav, voices_dir)
        if voice is not None:
            if voice not in voices:
                raise ConfigError(f"There is no voice {voice!r}.", f"Use one of {', '.join(voices)}.")
            voices = {voice: voices[voice], **voices}
        engine = cls(tts, chosen, voices, stream)
        if engine._is_xtts or chosen.startswith("en"):  # other models may not support Latin letters
            list(engine.speak("Warm up."))
        return engine

    def voices(self) -> list[str]:
        """Names that `speak` accepts; the first is the default."""
        return list(self._voices)

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        """Yield each sentence when it is ready: with XTTS in pieces (models/tts/streaming.py), else as a whole.

        Raises at the call: TextError, InputError. While iterating: StageError if the model fails.
        """
        check_voice(voice, self.voices())
        check_speed(speed, *SPEEDS)
        if speed != 1.0 and not self._is_xtts and not hasattr(self._model, "length_scale"):
            raise InputError(f"This model cannot speak at speed {speed}.", "Use speed 1.")
        chosen = self._voices[voice if voice is not None else next(iter(self._voices))]
        sentences = split_sentences(check_text(text, ENGINE_MAX_CHARS, self.language), self._max_sentence_chars())
        return self._speak(sentences, chosen, speed)

    def _speak(self, sentences: list[str], voice: VoiceSource, speed: float) -> Iterator[Speech]:
        for index, sentence in enumerate(sentences):
            last = index == len(sentences) - 1
            blocks = self._blocks(sentence, voice, speed)
            yield from speech_pieces(blocks, self.sample_rate_hz, sentence, last, speed, stream=self._stream)

    def _max_sentence_chars(self) -> int:
        """XTTS truncates longer sentences; its limit is 71 (Japanese) to 273 (French) characters."""
        limits = getattr(getattr(self._model, "tokenizer", None), "char_limits", {})
        return min(MAX_SENTENCE_CHARS, int(limits.get(self._language.split("-")[0], MAX_SENTENCE_CHARS)))

    def _blocks(self, sentence: str, voice: VoiceSource, speed: float) -> Iterator[Float32]:
        """Yield the blocks of one sentence, float32 mono (n,).

        XTTS keeps the state of a stream in the model. A stream that is still running for another utterance is therefore
        computed to its end before this one starts.
        """
        with self._lock:
            if self._current is not None:
                self._current.complete()
            stream = self._current = _SentenceStream(self._synthesise(sentence, voice, speed))
        try:
            while True:
                with self._lock:
                    block = next(stream, None)
                if block is None:
                    return
                yield block
        finally:
            with self._lock:
                stream.close()
                if self._current is stream:
                    self._current = None

    def _synthesise(self, sentence: str, voice: VoiceSource, speed: float) -> Iterator[Float32]:
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
                "Change the text, or read the log of TTS.",
            ) from error

    def _xtts(self, sentence: str, voice: VoiceSource, speed: float) -> Iterator[Float32]:
        latents, embedding = self._conditioning(voice)
        settings = {key: getattr(self._model.config, key) for key in GENERATION}
        arguments = (sentence, self._language, latents, embedding)
        if not self._stream:
            yield np.asarray(self._model.inference(*arguments, speed=speed, **settings)["wav"], np.float32)
            return
        for chunk in self._model.inference_stream(*arguments, speed=speed, **settings):
            yield np.asarray(chunk.detach().cpu(), np.float32).reshape(-1)

    def _conditioning(self, voice: VoiceSource) -> tuple[Any, Any]:
        """XTTS's description of a voice: GPT latents and speaker embedding, computed once per voice."""
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

    def _whole(self, sentence: str, voice: VoiceSource, speed: float) -> Float32:
        """A sentence from a model that does not stream. VITS's speed is set by `length_scale`: larger is slower."""
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


class _SentenceStream:
    """Iterates over a sentence's blocks. `complete` computes the rest at once; its error is raised by `next`."""

    def __init__(self, blocks: Iterator[Float32]) -> None:
        self._blocks = blocks
        self._ready: deque[Float32] = deque()
        self._error: StageError | None = None

    def __iter__(self) -> _SentenceStream:
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
        raise ConfigError(f"The device is {device!r}, but torch finds no GPU.", "Use device: cpu.")
    if threads is not None:
        torch.set_num_threads(threads)
    folder = Path(model)
    local = folder.is_absolute() or folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise WeightsError(f"There is no config.json in {model}.", "Use a model's name, or the folder of a model.")
    if not local:
        _check_licence(model, accept_cpml)
    source = {"model_path": str(folder), "config_path": str(folder / "config.json")} if local else {"model_name": model}
    try:
        return api.TTS(**source, progress_bar=False).to(device)
    except Exception as error:
        raise WeightsError(
            f"The voice model {model!r} could not be loaded: {type(error).__name__}: {error}.",
            "Check its name (`tts --list_models`) and the connection, or use a folder with its files.",
        ) from error


def _check_licence(model: str, accept_cpml: bool) -> None:
    """coqui-tts asks for consent on a terminal, which a replica does not have: require it in the config instead."""
    if "xtts" not in model:
        return
    if accept_cpml:
        os.environ["COQUI_TOS_AGREED"] = "1"
    if os.environ.get("COQUI_TOS_AGREED") != "1":
        raise ConfigError(
            "The licence of XTTS's weights (Coqui Public Model License) permits non-commercial use only.",
            "Read it at https://coqui.ai/cpml. To accept it, set accept_cpml: true in the options of TTS.",
        )


def _choose_language(tts: Any, language: str | None) -> str:
    manager = getattr(tts.synthesizer.tts_model, "language_manager", None)
    known = list(tts.languages or (manager.language_names if manager else None) or [])
    if language is None:
        return "en" if "en" in known or not known else str(known[0])
    if known and language not in known:
        raise ConfigError(f"The model does not speak {language!r}.", f"Use one of {', '.join(known)}.")
    return language


def _collect_voices(tts: Any, speaker_wav: str | list[str] | None, voices_dir: str | None) -> dict[str, VoiceSource]:
    """Voices by name: `speaker_wav`, then those in the folder, then the model's own."""
    voices: dict[str, VoiceSource] = {}
    if speaker_wav:
        paths = [speaker_wav] if isinstance(speaker_wav, str) else speaker_wav
        voices[CLONED] = VoiceSource(recordings=tuple(_recording(Path(path)) for path in paths))
    if voices_dir is not None:
        folder = Path(voices_dir)
        if not folder.is_dir():
            raise ConfigError(f"There is no voices folder {voices_dir!r}.", "Create it with one WAV file per voice.")
        for path in sorted(folder.glob("*.wav")):
            voices[check_id(path.stem, "voice id")] = VoiceSource(recordings=(_recording(path),))
    if voices and not tts.synthesizer.tts_model.config.supports_cloning:
        raise ConfigError("The model cannot clone a voice.", f"Use {XTTS}, or remove speaker_wav and voices_dir.")
    model = tts.synthesizer.tts_model
    is_xtts = hasattr(model, "inference_stream")  # XTTS's `tts.speakers` also lists voices that coqui-tts has cached
    own = getattr(model.speaker_manager, "speaker_names", []) if is_xtts else tts.speakers or []
    for name in own:
        voices.setdefault(name, VoiceSource(speaker=name))
    if not voices and is_xtts:
        raise ConfigError("The model has no built-in voice.", "Set speaker_wav to a recording.")
    return voices or {ONLY: VoiceSource()}


def _recording(path: Path) -> str:
    """Return the path of a recording that can be cloned. Raises AudioError if unreadable, ConfigError if too short."""
    samples, rate_hz = decode_audio(path)
    if len(samples) < MIN_REFERENCE_S * rate_hz:
        raise ConfigError(
            f"The recording {path.name!r} lasts {len(samples) / rate_hz:.1f} s, which is too short.",
            f"Use at least {MIN_REFERENCE_S:g} s of clear speech, best 6 to 30 s.",
        )
    return str(path)
