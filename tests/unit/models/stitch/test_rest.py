"""Rest: the source's mouth in silence, the generated one during sound, and soft fades between them."""

import numpy as np
import pytest

from configs.schema import StitchConfig
from deployments.stitch.avatar_cache import LoadedAvatar, mouth_of
from models.avatar.store import AvatarStore
from models.speech.activity import ActivityDetector
from models.stitch.mouth import Mouth
from models.stitch.rest import Rest, RestSettings, own_mouth_rests
from models.types import PreparedAvatar, Speech
from tests.support.paths import ROOT

FPS = 25
EMBEDDED_AVATARS = ROOT / "models" / "embedded" / "avatars"


def said(spans, duration_s, fps=FPS, chunk=8, **settings) -> np.ndarray:
    """Weights of an utterance of one segment, requested chunk by chunk."""
    rest = Rest(fps, RestSettings(**settings))
    rest.add(0, duration_s, np.array(spans, np.float64).reshape(-1, 2), last=True)
    count = round(duration_s * fps)
    return np.concatenate([rest.weights(k, min(chunk, count - k)) for k in range(0, count, chunk)])


def falls(weights: np.ndarray) -> int:
    """How often the generated mouth starts to fade out."""
    return int(np.sum((weights[:-1] == 1) & (weights[1:] < 1)))


def test_a_sentence_fades_in_before_it_and_out_after_it():
    weights = said([[0.3, 1.0]], 1.4)
    assert weights[:6] == pytest.approx([0, 0, 0.156, 0.5, 0.844, 1], abs=1e-3)  # 0.3 s is frame 7.5
    assert np.all(weights[5:27] == 1)  # a margin of two frames per side: lips open before a sound and close after it
    assert weights[27:] == pytest.approx([0.844, 0.5, 0.156, 0, 0, 0, 0, 0], abs=1e-3)


@pytest.mark.parametrize("fps", [24, 25, 30])
@pytest.mark.parametrize("fade_s", [0.08, 0.12, 0.16])
def test_a_fade_lasts_as_long_as_configured(fps, fade_s):
    weights = said([[1.0, 2.0]], 3.0, fps, fade_s=fade_s)
    for fade in (weights[: fps + 1], weights[2 * fps - 1 :]):
        between = np.sum((fade > 0) & (fade < 1))
        assert between / fps <= fade_s + 0.005 and (between + 1) / fps >= fade_s  # the duration of the fade


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("fps", [24, 25, 30])
def test_no_fade_ever_touches_a_sound(seed, fps):
    random = np.random.default_rng(seed)
    edges = np.cumsum(random.choice([0.03, 0.1, 0.2, 0.35, 0.6, 1.1], 12) * random.uniform(0.8, 1.2, 12))
    spans, duration_s = edges.reshape(-1, 2), float(np.ceil((edges[-1] + random.uniform(0, 0.5)) * fps) / fps)
    weights = said(spans, duration_s, fps, chunk=int(random.integers(1, 9)))
    starts = np.arange(len(weights)) / fps
    sounding = [(spans[:, 0] < start + 1 / fps - 1e-5) & (start + 1e-5 < spans[:, 1]) for start in starts]
    assert np.all(weights[np.any(sounding, axis=1)] == 1)
    gaps = spans[1:, 0] - spans[:-1, 1]
    inside = weights[(starts > spans[0, 1]) & (starts < spans[-1, 0])]
    assert falls(np.r_[1, inside, 1]) == np.sum(gaps >= 0.3)  # one fade-out per pause of 0.3 s or more


@pytest.mark.parametrize("pause_s, rests", [(0.1, False), (0.28, False), (0.32, True), (0.42, True), (1.0, True)])
@pytest.mark.parametrize("phase_s", [0.0, 0.013, 0.03])
def test_only_pauses_of_at_least_300_ms_show_the_resting_mouth(pause_s, rests, phase_s):
    weights = said([[0.1, 1.0 + phase_s], [1.0 + phase_s + pause_s, 3.0]], 3.4)
    inner = weights[5:70]
    assert (inner.min() == 0) == rests and (inner.min() == 1) == (not rests)


def test_a_silent_utterance_shows_only_the_source_mouth():
    assert np.all(said([], 3.0) == 0)


def test_speech_without_silence_at_its_edges_has_no_fade():
    assert np.all(said([[0.0, 1.0]], 1.0) == 1)


def test_a_short_silence_at_the_end_still_ends_at_rest():
    weights = said([[0.0, 0.5]], 0.64)  # three silent frames
    assert weights[-3:] == pytest.approx([0.741, 0.259, 0], abs=1e-3)


def test_a_source_with_a_moving_mouth_is_never_shown():
    assert np.all(said([[0.3, 1.0], [2.0, 2.5]], 3.0, source_rests=False) == 1)


def test_lips_shown_later_rest_later():
    at_once, late, early = (said([[0.6, 1.4]], 2.2, offset_s=offset) for offset in (0.0, 0.08, -0.08))
    assert late[2:] == pytest.approx(at_once[:-2]) and early[:-2] == pytest.approx(at_once[2:])


def two_segments(following_at: int | None, lead_s: float = 0.12, trail_s: float = 0.32) -> np.ndarray:
    """Weights of two sentences of 1 s each; the second becomes known at that frame, or only when it starts."""
    rest, weights = Rest(FPS), []
    first_s = 0.12 + 1.0 + trail_s
    second = round(first_s * FPS)
    rest.add(0, first_s, np.array([[0.12, 1.12]]), last=False)
    for frame in range(0, second + 40, 4):
        if frame >= (second if following_at is None else following_at):
            rest.add(second, 40 / FPS, np.array([[lead_s, lead_s + 1.0]]), last=True)
        weights.append(rest.weights(frame, 4))
    return np.concatenate(weights)


def test_a_pause_between_sentences_is_one_pause_when_the_next_is_known():
    weights = two_segments(following_at=28)
    assert falls(weights[3:50]) == 1
    assert weights[28:41] == pytest.approx([1, 1, 0.844, 0.5, 0.156, 0, 0.156, 0.5, 0.844, 1, 1, 1, 1], abs=1e-3)


def test_when_the_next_sentence_is_not_known_the_mouth_is_back_in_time_for_it():
    weights = two_segments(following_at=None, lead_s=0.0)
    assert weights[28:36] == pytest.approx([1, 0.741, 0.259, 0, 0, 0.259, 0.741, 1], abs=1e-3)
    assert np.all(weights[36:60] == 1)


def test_short_silences_make_a_pause_together():
    weights = two_segments(following_at=28, trail_s=0.2, lead_s=0.2)
    assert weights[28:38].min() == 0 and falls(weights[3:50]) == 1


def test_the_mouth_hears_a_segment_once_however_often_it_is_told():
    voice = np.sin(np.arange(16_000) * 2 * np.pi * 200 / 16_000).astype(np.float32) * 0.2
    speech = Speech(np.concatenate([np.zeros(8000, np.float32), voice, np.zeros(8000, np.float32)]), 16_000, last=True)
    once, twice = Mouth(FPS), Mouth(FPS)
    once.add_speech(speech, 0)
    for _ in range(2):
        twice.add_speech(speech, 0)
    weights = once.weights(0, 50)
    assert np.array_equal(weights, twice.weights(0, 50))
    assert weights[:6].max() == 0 and np.all(weights[12:38] == 1) and weights[-5:].max() == 0


def avatar(gaps) -> PreparedAvatar:
    """An avatar with this gap of the inner lips, relative to an eye distance of 100 px."""
    landmarks = np.zeros((len(gaps), 68, 2), np.float32)
    landmarks[:, 45, 0] = 100
    for up, low in ((61, 67), (62, 66), (63, 65)):
        landmarks[:, low, 1] = landmarks[:, up, 1] + 100 * np.asarray(gaps)
    count = len(gaps)
    return PreparedAvatar(
        "a", "1", 25, 8, 8, np.zeros((count, 2, 3), np.float32), landmarks, np.zeros((count, 1, 1), np.uint8),
        np.ones(count, np.bool_),
    )  # fmt: skip


def test_a_still_mouth_is_told_from_a_talking_one():
    random = np.random.default_rng(0)
    still = 0.05 + random.normal(size=200) * 0.005  # half a pixel of noise
    talking = 0.05 + 0.05 * np.abs(np.sin(np.arange(200) * 0.9))
    yawning_once = np.where(np.arange(200) < 6, 0.3, still)
    assert own_mouth_rests(avatar(still)) and own_mouth_rests(avatar(yawning_once))
    assert not own_mouth_rests(avatar(talking))


def test_the_embedded_presenters_mouth_rests():
    assert own_mouth_rests(AvatarStore(EMBEDDED_AVATARS).load("presenter", latents=False, frames=False))


@pytest.mark.parametrize(
    "rest_mouth, moves, rests",
    [("auto", False, True), ("auto", True, False), ("source", True, True), ("generated", False, False)],
)
def test_the_config_says_whose_mouth_rests(rest_mouth, moves, rests):
    gaps = 0.05 + 0.05 * np.abs(np.sin(np.arange(50) * 0.9)) * moves
    config = StitchConfig(rest_mouth=rest_mouth, av_offset_ms=80)
    loaded = LoadedAvatar(avatar(gaps), None, own_mouth_rests(avatar(gaps)))
    mouth = mouth_of(loaded, config, FPS)
    tone = np.sin(np.arange(16_000) * 2 * np.pi * 200 / 16_000).astype(np.float32) * 0.2
    mouth.add_speech(Speech(np.pad(tone, (16_000, 16_000)), 16_000, last=True), 0)
    weights = mouth.weights(0, 75)
    assert (weights[:20].max() == 0) == (weights[-5:].max() == 0) == rests and np.all(weights[27:51] == 1)
    assert not rests or weights[22] < 1  # 80 ms later than the sound, whose margin begins at frame 22


def test_an_avatar_without_a_face_has_no_mouth_to_rest():
    faceless = avatar([0.0] * 4)
    faceless.has_face[:] = False
    assert not own_mouth_rests(faceless)


def test_noise_and_nothing_do_not_make_the_mouth_flap():
    noise = (np.random.default_rng(3).normal(size=5 * 16_000) * 1e-3).astype(np.float32)
    for samples in (noise, np.zeros(5 * 16_000, np.float32)):
        rest = Rest(FPS)
        rest.add(0, 5.0, ActivityDetector().from_sound(samples, 16_000), last=True)
        assert np.all(rest.weights(0, 125) == 0)
