"""models.features: MuseTalk's windows, contexts of different lengths, and unusable samples and weights."""

from __future__ import annotations

import asyncio
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperModel

from deployments.features import AudioFeatures
from models.errors import AudioError, WeightsError
from models.features import STEP_SAMPLES, Context, WhisperFeatures, cut_windows, plan_contexts
from models.speech.mel import log_mel
from models.types import Phoneme, Speech
from tests.support.paths import ROOT

EMBEDDED = ROOT / "models" / "embedded" / "whisper"
WIDTH, STATES = 32, 3  # of the small random encoder: two layers
RATE = 16_000


def small_config(**changes: int) -> WhisperConfig:
    sizes = {"d_model": WIDTH, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "vocab_size": 99}
    return WhisperConfig(**{**sizes, **decoder, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes})


def write_folder(folder: Path, state: dict[str, torch.Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(small_config().to_dict()))
    state = {key: value.clone().contiguous() for key, value in state.items()}
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder


@pytest.fixture(scope="module")
def encoder() -> WhisperEncoder:
    torch.manual_seed(0)
    return WhisperEncoder(small_config()).eval()


@pytest.fixture(scope="module")
def features(encoder: WhisperEncoder, tmp_path_factory: pytest.TempPathFactory) -> WhisperFeatures:
    return WhisperFeatures.load(write_folder(tmp_path_factory.mktemp("whisper"), encoder.state_dict()))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise with a changing level, so that all steps differ."""
    count = round(seconds * RATE)
    swell = 0.55 + 0.45 * np.sin(np.arange(count) / RATE * 7.0)
    return (np.random.default_rng(seed).standard_normal(count) * 0.1 * swell).astype(np.float32)


def reference_states(encoder: WhisperEncoder, samples: np.ndarray, context_s: int) -> np.ndarray:
    """States of one padded context, with transformers' feature extractor and each layer called directly."""
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=context_s)
    mel = torch.from_numpy(extractor(samples, sampling_rate=RATE, return_tensors="np").input_features)
    with torch.no_grad():
        x = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(mel)))).transpose(1, 2)
        states = [x + encoder.embed_positions.weight[: x.shape[1]]]
        for layer in encoder.layers:
            states.append(layer(states[-1], None))
        states[-1] = encoder.layer_norm(states[-1])
    return torch.stack(states, dim=2)[0].numpy()  # (steps, states, width)


def reference_windows(states: np.ndarray, sample_count: int, fps: int) -> np.ndarray:
    """MuseTalk's windows, computed frame by frame."""
    steps = states[: math.floor(50 * sample_count / RATE)]
    unit = math.ceil(50 / fps)
    empty = np.zeros((1, *states.shape[1:]), np.float32)
    padded = np.concatenate([empty] * (2 * unit) + [steps] + [empty] * (6 * unit))
    frames = []
    for k in range(sample_count * fps // RATE):
        start = math.floor(k * 50 / fps)
        frames.append(np.concatenate([padded[start + j] for j in range(10)]))  # step-major
    return np.stack(frames)


@pytest.mark.parametrize("fps", [24, 25, 30])
@pytest.mark.parametrize("seconds", [0.4, 1.16, 3.337, 9.99])
def test_windows_equal_musetalks(features: WhisperFeatures, encoder: WhisperEncoder, fps: int, seconds: float) -> None:
    samples = noise(seconds)
    wanted = reference_windows(reference_states(encoder, samples, 30), len(samples), fps)
    got = features.windows(samples, fps).numpy()
    assert got.shape == (len(samples) * fps // RATE, 10 * STATES, WIDTH)
    np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("fps", [24, 25, 30])
@pytest.mark.parametrize("count", [1, 333, 18_560, 160_001])
def test_each_window_has_the_expected_steps(fps: int, count: int) -> None:
    """Step s has the value s + 1, so that a window shows its steps and its zeros."""
    total = count // STEP_SAMPLES
    states = torch.arange(1, total + 1).float()[:, None, None].expand(-1, 2, 3)
    got = cut_windows(states, count / RATE, fps)[:, ::2, 0]  # (n, 10), the first of two states
    left = 2 * math.ceil(50 / fps)
    assert len(got) == count * fps // RATE
    for k, window in enumerate(got):
        first = k * 50 // fps - left
        assert window.tolist() == [s + 1 if 0 <= s < total else 0 for s in range(first, first + 10)]


def test_ahead_s_shifts_windows_by_whole_steps_within_the_speech() -> None:
    states = torch.arange(1, 101).float()[:, None, None]  # 2 s
    plain, ahead = cut_windows(states, 2.0), cut_windows(states, 2.0, ahead_s=[0.0] * 10 + [0.04] * 5 + [9.0] * 3)
    assert torch.equal(ahead[10:15], plain[11:16])  # 40 ms are a frame at 25 fps
    assert torch.equal(ahead[:10], plain[:10]) and torch.equal(ahead[18:], plain[18:])
    assert ahead[15, :, 0].tolist() == ahead[17, :, 0].tolist() == [0.0] * 10  # the zeros after the speech


async def test_the_stage_applies_rest_and_plosive_lead_as_configured() -> None:
    stage = AudioFeatures()
    tone = np.sin(np.arange(RATE) * 2 * np.pi * 150 / RATE).astype(np.float32) * 0.2
    silent = Speech(np.zeros(2 * RATE, np.float32), RATE, last=True)
    voiced = Speech(tone, RATE, last=True, phonemes=(Phoneme("a", 0.0, 0.5), Phoneme("p", 0.5, 1.0)))
    await stage.reconfigure({})
    rest, plain = (await stage.windows(silent, 25)).value, (await stage.windows(voiced, 25)).value
    assert len(rest) == 50 and np.all(rest.windows[13:] == rest.rest)
    assert np.array_equal(plain.rest, rest.rest)
    await stage.reconfigure({"rest_in_silence": False, "plosive_lead_ms": 40})
    raw, led = (await stage.windows(silent, 25)).value, (await stage.windows(voiced, 25)).value
    assert np.abs(raw.windows[13:].astype(np.float32) - raw.rest.astype(np.float32)).mean() > 0.1
    assert np.array_equal(led.windows[13:20], plain.windows[14:21]) and np.array_equal(
        led.windows[:9], plain.windows[:9]
    )


async def test_the_stage_returns_the_first_windows_and_keeps_the_others_for_one_more_call(monkeypatch) -> None:
    stage, computed = AudioFeatures(), []
    monkeypatch.setattr(stage, "_windows", lambda *given: computed.append(1) or AudioFeatures._windows(stage, *given))
    await stage.reconfigure({})
    speech = Speech(np.sin(np.arange(RATE) / 10).astype(np.float32) * 0.2, RATE)
    first, whole = await asyncio.gather(stage.windows(speech, 25, count=2, key="a"), stage.windows(speech, 25, key="a"))
    assert len(first.value) == 2 and len(whole.value) == 25 and len(computed) == 1
    assert np.array_equal(first.value.windows, whole.value.windows[:2])
    again = await stage.windows(speech, 25, key="a")  # a retry: nothing is kept any more
    assert len(computed) == 2 and np.array_equal(again.value.windows, whole.value.windows)


def test_fractional_seconds_are_rounded_to_samples() -> None:
    states = torch.zeros(58, 1, 1)
    assert len(cut_windows(states, 1.16, 25)) == 29  # 1.16 · 25 is 28.999999999999996 in floating point


def test_speech_shorter_than_a_frame_has_no_window_and_a_frame_has_one(features: WhisperFeatures) -> None:
    assert features.windows(noise(639 / RATE)).shape == (0, 10 * STATES, WIDTH)
    assert features.windows(noise(640 / RATE)).shape == (1, 10 * STATES, WIDTH)


def test_torch_numpy_and_read_only_samples_are_equal(features: WhisperFeatures) -> None:
    samples = noise(0.5)
    read_only = samples.copy()
    read_only.flags.writeable = False
    wanted = features.windows(samples)
    assert torch.equal(features.windows(torch.from_numpy(samples)), wanted)
    assert torch.equal(features.windows(read_only), wanted)


def test_results_may_feed_a_training_step(features: WhisperFeatures) -> None:
    windows = features.windows_in_context(noise(0.5))
    layer = torch.nn.Linear(WIDTH, 1)
    layer(windows).sum().backward()
    assert not windows.requires_grad and layer.weight.grad.abs().sum() > 0


# Long speech


def test_the_first_28_seconds_come_from_the_first_30_alone(features: WhisperFeatures) -> None:
    speech = noise(40.0)
    alone = features.windows(speech[: 30 * RATE])
    long = features.windows(speech)
    last = 28 * 25 - 4  # its window ends at 28 s: two steps of left padding, ten steps wide
    assert torch.equal(long[:last], alone[:last])
    assert len(long) == 1000


@pytest.mark.parametrize("seconds", [8.0, 8.02, 13.97, 14.0, 14.1, 61.3])
def test_contexts_cover_every_step_once_with_a_margin(seconds: float) -> None:
    count, context, margin = round(seconds * RATE), 400, 50
    plan = plan_contexts(count, context, margin)
    assert plan[0].start == plan[0].keep_from == 0
    assert plan[-1].keep_to == count // STEP_SAMPLES
    for before, after in pairwise(plan):
        assert before.keep_to == after.keep_from
        assert before.start + context - before.keep_to >= margin  # the earlier context sees this much of what follows
        assert after.keep_from - after.start >= margin
    assert all(c.keep_to <= c.start + context for c in plan)


def test_a_plan_does_not_depend_on_later_speech() -> None:
    short, long = plan_contexts(20 * RATE, 400, 50), plan_contexts(60 * RATE, 400, 50)
    assert short[:-1] == long[: len(short) - 1]
    assert short[:2] == [Context(0, 0, 350), Context(300, 350, 650)]


def test_later_contexts_use_their_own_speech(features: WhisperFeatures, encoder: WhisperEncoder) -> None:
    """The frame at 30 s of 40 s of speech is from the context that starts at 26 s."""
    speech = noise(40.0)
    states = reference_states(encoder, speech[26 * RATE :], 30)
    at_30_s = features.windows(speech)[30 * 25]  # (30, 32): from 30 s less 4 steps of left padding
    wanted = states[4 * 50 - 4 : 4 * 50 + 6].reshape(10 * STATES, WIDTH)
    np.testing.assert_allclose(at_30_s.numpy(), wanted, atol=2e-5)


def test_long_speech_is_encoded_one_context_at_a_time(features: WhisperFeatures) -> None:
    contexts: list[int] = []
    encode = features.encode
    features.encode = lambda mel: contexts.append(len(mel)) or encode(mel)  # type: ignore[method-assign]
    try:
        windows = features.windows(np.tile(noise(1.0), 61))
    finally:
        del features.encode
    assert len(windows) == 61 * 25
    assert contexts == [1, 1, 1]  # ceil((61 - 4) / 26) contexts; on a CPU one at a time bounds the memory


# The shortened context


def test_a_short_context_is_the_encoder_with_a_cut_position_table(
    features: WhisperFeatures, encoder: WhisperEncoder
) -> None:
    samples = noise(3.3)
    wanted = reference_windows(reference_states(encoder, samples, 8), len(samples), 25)
    np.testing.assert_allclose(features.windows_in_context(samples).numpy(), wanted, atol=2e-5)


def test_a_context_of_30_s_equals_the_full_context(features: WhisperFeatures) -> None:
    speech = noise(33.0)
    assert torch.equal(features.windows_in_context(speech, 25, 30.0, 2.0), features.windows(speech))


def test_the_first_context_does_not_depend_on_later_speech(features: WhisperFeatures) -> None:
    speech = noise(15.0)
    changed = speech.copy()
    changed[8 * RATE :] *= 0.1
    last = 7 * 25 - 4
    assert torch.equal(features.windows_in_context(speech)[:last], features.windows_in_context(changed)[:last])


def test_batched_inner_steps_give_the_same_windows(features: WhisperFeatures) -> None:
    """As in training: many clips as one batch of padded contexts."""
    clips = [noise(seconds, seed) for seed, seconds in enumerate((2.0, 5.5, 8.0))]
    padded = torch.stack([torch.nn.functional.pad(torch.from_numpy(c), (0, 8 * RATE - len(c))) for c in clips])
    states = features.encode(features.log_mel(padded))  # (3, 400, 3, 32)
    for clip, own in zip(clips, states, strict=True):
        torch.testing.assert_close(
            cut_windows(own, len(clip) / RATE), features.windows_in_context(clip), atol=2e-5, rtol=0
        )


# The log-mel spectrogram


@pytest.mark.parametrize("mel_bins", [80, 128])
def test_log_mel_equals_transformers_own(mel_bins: int) -> None:
    samples = noise(30.0)
    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    wanted = extractor(samples, sampling_rate=RATE, return_tensors="np").input_features
    np.testing.assert_allclose(log_mel(torch.from_numpy(samples)[None], mel_bins).numpy(), wanted, atol=1e-5)


def test_rows_of_a_log_mel_batch_are_independent() -> None:
    loud, quiet = torch.from_numpy(noise(1.0)), torch.from_numpy(noise(1.0, 1) * 1e-3)
    both = log_mel(torch.stack([loud, quiet]))
    torch.testing.assert_close(both[1:], log_mel(quiet[None]), atol=1e-6, rtol=0)


# Weights


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder."])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_encoder_loads_under_any_prefix(
    features: WhisperFeatures, encoder: WhisperEncoder, tmp_path: Path, prefix: str, name: str
) -> None:
    state = {prefix + key: value for key, value in encoder.state_dict().items()}
    samples = noise(0.5)
    loaded = WhisperFeatures.load(write_folder(tmp_path, state, name))
    assert torch.equal(loaded.windows_in_context(samples), features.windows_in_context(samples))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_whole_whisper_gives_its_encoder(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(1)
    whole = WhisperModel(small_config())
    state = {prefix + key: value for key, value in whole.state_dict().items()}
    loaded = WhisperFeatures.load(write_folder(tmp_path, state))
    assert torch.equal(loaded.encoder.layers[1].fc1.weight, whole.encoder.layers[1].fc1.weight)


def test_half_precision_weights_run_in_the_requested_dtype(
    features: WhisperFeatures, encoder: WhisperEncoder, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, {key: value.half() for key, value in encoder.state_dict().items()})
    samples = noise(0.5)
    wide, half = WhisperFeatures.load(folder), WhisperFeatures.load(folder, dtype=torch.bfloat16)
    assert wide.windows(samples).dtype == torch.float32
    assert half.windows(samples).dtype == torch.bfloat16
    torch.testing.assert_close(wide.windows(samples), features.windows(samples), atol=0.02, rtol=0)


def test_a_partial_encoder_names_what_is_missing(encoder: WhisperEncoder, tmp_path: Path) -> None:
    state = encoder.state_dict()
    del state["layers.1.fc1.weight"]
    with pytest.raises(WeightsError, match=r"1 missing \(layers\.1\.fc1\.weight\)"):
        WhisperFeatures.load(write_folder(tmp_path, state))


def test_a_config_of_something_else_names_the_missing_key(encoder: WhisperEncoder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, encoder.state_dict())
    (folder / "config.json").write_text('{"hidden_size": 768}')
    with pytest.raises(WeightsError, match=r"config\.json has no 'd_model'"):
        WhisperFeatures.load(folder)


def test_a_folder_without_weights_names_the_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_config().to_dict()))
    with pytest.raises(WeightsError, match=r"none of model\.safetensors, pytorch_model\.bin"):
        WhisperFeatures.load(tmp_path)


def test_the_embedded_encoder_gives_windows_of_the_specified_shape() -> None:
    embedded = WhisperFeatures.load(EMBEDDED)
    windows = embedded.windows_in_context(noise(1.0))
    assert windows.shape == (25, 50, 384) and windows.dtype == torch.float32
    last_norm = windows[12].reshape(10, 5, 384)[:, 4]  # the final layer norm of a window that needs no padding
    assert 0.3 < float(last_norm.std()) < 3.0


# What is refused


@pytest.mark.parametrize(
    ("samples", "cause"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((2, 100), np.float32), "shape"),
        (np.zeros(100, np.int16), "not floats"),
        (np.array([0.0, np.nan], np.float32), "NaN"),
    ],
)
def test_unusable_samples_are_refused(features: WhisperFeatures, samples: np.ndarray, cause: str) -> None:
    for windows in (features.windows, features.windows_in_context):
        with pytest.raises(AudioError, match=cause):
            windows(samples)
