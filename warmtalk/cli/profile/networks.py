"""Counts the network of a stage and measures the ceilings of its device, on an engine of its own in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np

from deployments.common.stage import parse_config
from models.errors import WarmTalkError
from models.runtime.ceilings import Ceilings, measure_ceilings
from models.runtime.work import count_work
from models.types import CROP_PX, CropWindow
from warmtalk.cli.profile.driving import FPS, SENTENCE, noise
from warmtalk.cli.profile.roofline import Network

COUNTED_CALLS = 8  # frames per call where the batch of the stage is larger: the counts per frame hardly change
AUDIO_FRAMES = 8 * FPS  # of one call of AudioFeatures: a whole context

Call = Callable[[], Any]


def numbers_of(stage: str, config: Any) -> tuple[str, str, int | None]:
    """Device, number format and CPU threads in which the engine of a stage computes."""
    options = getattr(config, "options", {})
    device = str(options.get("device") or getattr(config, "device", "cpu"))
    dtype = str(options.get("dtype") or getattr(config, "dtype", "float32"))
    threads = options.get("threads") or getattr(config, "threads", None)
    if stage == "LipSync" and config.engine == "openvino":
        from models.runtime.openvino_cache import has_fast_bfloat16

        auto = "bfloat16" if has_fast_bfloat16() else "float32"
        return "cpu", auto if config.precision == "auto" else config.precision, threads
    return device, dtype, threads


def examine(stage: str, user_config: dict[str, Any], avatar_id: str) -> dict[str, Any]:
    """`network`, `operations` (shares of its time) and `ceilings` of a stage as JSON. Raises WarmTalkError."""
    config = parse_config(stage, user_config)
    frames, run = CALLS[stage](config, avatar_id)
    run()  # loads what is loaded at the first call
    # what runs is recorded with fused kernels, our own or inductor's; what is counted is the same network without them
    compiled = {getattr(config, "compile", "off"), getattr(config, "options", {}).get("compile", "off")}
    fused = compiled != {"off"}
    work, made = count_work(run, fused)
    frames = frames or round(sum(speech.duration_s for speech in made) * FPS)
    network = Network(work.flop / frames / 1e9, work.moved_bytes / frames / 1e6, frames)
    total_s = sum(work.seconds.values())
    longest = sorted(work.seconds.items(), key=lambda item: -item[1])
    shares = {kind: round(took_s / total_s, 3) for kind, took_s in longest[:6]} if total_s else {}
    ceilings = _ceilings(*numbers_of(stage, config))
    return {"network": asdict(network), "operations": shares, "ceilings": asdict(ceilings)}


def examine_all(stages: Sequence[tuple[str, dict[str, Any]]], avatar_id: str) -> dict[str, dict[str, Any]]:
    """`examine` of several stages, or the reason why one could not be. Use a process of its own: it loads engines."""
    found: dict[str, dict[str, Any]] = {}
    for stage, user_config in stages:
        try:
            found[stage] = examine(stage, user_config, avatar_id)
        except WarmTalkError as error:
            found[stage] = {"not_counted": error.message}
    return found


@cache
def _ceilings(device: str, dtype: str, threads: int | None) -> Ceilings:
    return measure_ceilings(device, dtype, threads)


# --- one call of the engine per stage: its frames (0: as many as it makes) and the call


def _speak(config: Any, avatar_id: str) -> tuple[int, Call]:
    from models.runtime.registry import find_engine
    from models.tts import ENGINES

    engine = find_engine(config.engine, ENGINES).load(**config.options)
    return 0, lambda: list(engine.speak(SENTENCE, config.voice, config.speed))


def _listen(config: Any, avatar_id: str) -> tuple[int, Call]:
    import torch

    from deployments.common.paths import input_path
    from deployments.features import resting_window, segment_windows
    from models.features import WhisperFeatures

    torch.set_num_threads(config.threads)
    dtype = getattr(torch, config.dtype)
    model = WhisperFeatures.load(input_path(config.weights), device=config.device, dtype=dtype)
    rest = resting_window(model, config)
    return AUDIO_FRAMES, lambda: segment_windows(model, rest, config, noise(AUDIO_FRAMES), FPS)


def _generate(config: Any, avatar_id: str) -> tuple[int, Call]:
    """Counts what LipSync decodes of that avatar's faces."""
    from deployments.lipsync import load_engine

    model, frames = load_engine(config.model_copy(update={"compile": "off"})), min(config.batch_size, COUNTED_CALLS)
    latents, windows = np.zeros((frames, 8, 32, 32), np.float16), np.zeros((frames, 50, 384), np.float16)
    if faces := getattr(model, "recorded", None):
        held = faces.hold(latents, *_window(config, avatar_id, faces.exact_crops))
        if getattr(held, "decoder", None) is not None:
            held.decoder.result()  # it is compiled meanwhile

        def run_held() -> Any:
            made = faces.start([(held, k, windows[k]) for k in range(frames)])
            return made() if callable(made) else made

        return frames, run_held
    if config.compile == "off":
        return frames, lambda: model.generate(latents, windows)
    import torch

    from models.cropped_decoder import CroppedDecoder

    whole = CroppedDecoder(model.decoder).eval()
    shape = whole.statistics_shape
    window = _window(config, avatar_id, shape is None)
    decoder = whole.at(*window) if window else whole
    statistics = [torch.zeros((frames, *shape), device=model.device)] if window and shape else []

    def run() -> Any:
        with torch.inference_mode():
            return decoder(model.predict(latents, windows), *statistics)

    return frames, run


def _window(config: Any, avatar_id: str, exact: bool) -> tuple[CropWindow, ...]:
    """What is decoded of the avatar's faces; empty: all of them."""
    from deployments.common.paths import builtin_avatars, output_path
    from models.avatar.decoding import choose_decoder
    from models.avatar.store import AvatarStore
    from models.map_window import rounded

    avatar = AvatarStore(output_path(config.avatars_dir), builtin_avatars()).load(avatar_id, frames=False)
    window, _ = choose_decoder(config.decode, avatar, exact)
    return () if window is None else (rounded(window),)


def _restore(config: Any, avatar_id: str) -> tuple[int, Call]:
    from deployments.enhance import load_engine

    options = {key: value for key, value in config.options.items() if key != "compile"}
    engine, frames = load_engine(config.engine, options), min(config.batch_size, COUNTED_CALLS)
    faces = np.zeros((frames, CROP_PX, CROP_PX, 3), np.uint8)
    return frames, lambda: engine.restore(faces)


CALLS: dict[str, Callable[[Any, str], tuple[int, Call]]] = {
    "TTS": _speak,
    "AudioFeatures": _listen,
    "LipSync": _generate,
    "Enhance": _restore,
}
