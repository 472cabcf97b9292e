"""Speaks a text in one process, without Ray, with the product's own voice, features, LipSync, paste and encoder.

Chunks are generated one after another and written to a session with the code of Stitch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.embedded import BATCH, EMBEDDED
from configs.schema import AudioFeaturesConfig, StitchConfig
from deployments.common.messages import SpeakRequest
from deployments.features import resting_window, segment_windows
from deployments.stitch.avatar_cache import load_avatar, media_spec, mouth_of
from deployments.stitch.chunks import Chunk, SpeechSegment
from deployments.stitch.open_sessions import OpenSessions
from deployments.stitch.utterance import UtteranceWriter
from models.avatar.playback import ping_pong
from models.avatar.store import AvatarStore
from models.features import WhisperFeatures
from models.musetalk_openvino import OpenVINOMuseTalk
from models.speech.activity import ActivityDetector
from models.speech.audio import pad_to_frames
from models.tts.hibari import HibariTTS
from models.types import FaceCrops, Float16, PreparedAvatar, Speech, UInt8

ENGINES = {"TTS": "hibari", "AudioFeatures": "whisper", "LipSync": "openvino"}


class Speaker:
    """The embedded models, loaded once, and sessions below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.voice, self.features = HibariTTS.load(), WhisperFeatures.load(EMBEDDED / "whisper")
        files = (EMBEDDED / "musetalk/musetalk.json", EMBEDDED / "musetalk/unet.safetensors", EMBEDDED / "vae")
        self.engine = OpenVINOMuseTalk.load(*files, threads=2, precision="auto")
        self.config = AudioFeaturesConfig()
        self.rest = resting_window(self.features, self.config)
        self.sessions = OpenSessions(folder, 8)

    def say(self, avatar: PreparedAvatar, session_id: str, text: str, pause_s: float = 0.0) -> Path:
        """Add an utterance to a session, with `pause_s` of silence after each sentence. Returns the session's video."""
        config, session = StitchConfig(), self.sessions.find(session_id)
        spec, shown = media_spec(avatar, config), load_avatar(avatar, config)
        position = session.position if session else 0
        mouth = mouth_of(shown, config, avatar.fps)
        writer = UtteranceWriter(
            SpeakRequest(session_id, text), self.sessions, shown, spec, position, mouth, engines=dict(ENGINES)
        )
        speeches = [paused(speech, pause_s) for speech in self.voice.speak(text)]
        for chunk in self._chunks(avatar, speeches, position):
            writer.add(chunk)
        writer.end()
        assert writer.session is not None
        return writer.session.path

    def _chunks(self, avatar: PreparedAvatar, speeches: list[Speech], position: int) -> Iterator[Chunk]:
        """Chunks of BATCH frames per segment, padded as in deployments.stitch.pipeline."""
        segments, first, added_s, detector = list[SpeechSegment](), 0, 0.0, ActivityDetector()
        for speech in speeches:
            whole = pad_to_frames(speech, avatar.fps, added_s)
            added_s += whole.duration_s - speech.duration_s
            count = round(whole.duration_s * avatar.fps)
            segments.append(SpeechSegment(whole, first, count, whole, detector(whole)))
            first += count
        for segment, following in itertools.zip_longest(segments, segments[1:]):
            speech, begin, count = segment.speech, segment.first_frame, segment.frames
            faces = self.faces(avatar, speech, position + begin, count)
            for start in range(0, count, BATCH):
                crops = FaceCrops(faces[start : start + BATCH], begin + start, avatar.avatar_id)
                last = speech.last and start + BATCH >= count
                yield Chunk(crops, speech if start == 0 else None, last, position + begin + start, following)

    def faces(self, avatar: PreparedAvatar, speech: Speech, position: int, count: int) -> UInt8:
        """The generated crops of a segment, `(count, 256, 256, 3)`."""
        assert avatar.latents is not None
        shown = ping_pong(position, count, len(avatar))
        return self.generate(avatar.latents[shown], speech, avatar.fps)

    def generate(self, latents: Float16, speech: Speech, fps: int) -> UInt8:
        """Crops for reference latents `(n, 8, 32, 32)` and the first n frames of a speech."""
        windows = segment_windows(self.features, self.rest, self.config, speech, fps)[: len(latents)]
        parts = [
            self.engine.generate(latents[k : k + BATCH], windows[k : k + BATCH]) for k in range(0, len(latents), BATCH)
        ]
        return np.concatenate(parts)


def paused(speech: Speech, pause_s: float) -> Speech:
    """The speech followed by silence."""
    silence = np.zeros(round(pause_s * speech.sample_rate_hz), np.float32)
    return replace(speech, samples=np.concatenate([speech.samples, silence]))


def presenter(avatars: Path = EMBEDDED / "avatars") -> PreparedAvatar:
    """The default avatar."""
    return AvatarStore(avatars).load("presenter")
