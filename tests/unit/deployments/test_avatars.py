"""The Avatars stage without Ray: preparation at start, preparing on request, listing, posters and removal."""

import asyncio
import shlex
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import deployments.avatars
from deployments import preparation
from deployments.avatars import Avatars
from deployments.preparation import SMOOTHING_KEYS, prepare_options
from models.avatar.prepare import prepare_avatar
from models.avatar.store import AvatarStore, file_sha256
from models.errors import (
    AvatarNotFound,
    ConfigError,
    ExistsError,
    IdError,
    InputError,
    NoFaceError,
    QuotaError,
    VideoError,
    WeightsError,
)
from models.weights.vae_files import vae_fingerprint
from tests.support.avatar import astronaut, fake_encoder, moved, swaying, write_clip
from tests.support.stored_avatar import copy_avatar
from warmtalk.cli import app as cli
from warmtalk.cli import prepare as cli_prepare

VAE = Path(deployments.avatars.__file__).parents[1] / "models" / "embedded" / "vae"
FRAMES = 6


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = [moved(astronaut(), motion) for motion in swaying(astronaut(), FRAMES)]
    return write_clip(tmp_path_factory.mktemp("clip") / "my face.mp4", frames)


@pytest.fixture(scope="module")
def prepared(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an avatar that was really prepared from the clip."""
    store = AvatarStore(tmp_path_factory.mktemp("prepared"))
    prepare_avatar(clip, "me", store, fake_encoder, vae_fingerprint(VAE))
    return store.folder("me")


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    """A fake VAE with the fingerprint of the embedded one. `gate` can block its calls."""
    encoder = SimpleNamespace(loads=0, gate=threading.Event(), calls=0)
    encoder.gate.set()

    def encode(crops):
        encoder.calls += 1
        encoder.gate.wait(20)
        return fake_encoder(crops)

    def load(config):
        encoder.loads += 1
        return SimpleNamespace(encode_reference=encode, vae_fingerprint=vae_fingerprint(VAE))

    for module in (deployments.avatars, cli_prepare):
        monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    return encoder


@pytest.fixture
def preparations(encoder, prepared, monkeypatch) -> list[tuple]:
    """Replaces preparation by a copy of `prepared`; records source, avatar id, options and `force` of each call."""
    calls: list[tuple] = []

    def prepare(
        source, avatar_id, store, encode, fingerprint, options, *, force=False, progress=None, measure_decoding
    ):
        calls.append((source, avatar_id, options, force))
        with source.open("rb") as file:
            facts = {"source": {"sha256": file_sha256(file)}, "settings": options.settings}
        copy_avatar(prepared, store, avatar_id, force, vae_fingerprint=fingerprint, **facts)
        return SimpleNamespace(to_dict=dict)

    monkeypatch.setattr(preparation, "prepare_avatar", prepare)
    return calls


async def started(**config) -> Avatars:
    stage = Avatars()
    await stage.reconfigure(config)
    return stage


async def names(stage: Avatars) -> list[str]:
    return [facts["avatar_id"] for facts in await stage.list()]


async def prepare(stage: Avatars, source: Path, avatar_id: str = "me", **options) -> list[dict]:
    return [event async for event in stage.prepare(str(source), avatar_id, **options)]


# --- preparation at start


async def test_a_missing_avatar_is_prepared_at_start_and_then_is_current(encoder, clip, tmp_path):
    config = {"avatar_id": "me", "video_path": str(clip)}
    stage = await started(**config, preparation=True)
    assert "me" in await names(stage) and encoder.loads == 1
    assert (tmp_path / "results" / "avatars" / "me" / "avatar.json").is_file()
    await started(**config)
    await started(**config, preparation=False)
    assert encoder.loads == 1


@pytest.mark.parametrize(
    "change",
    [
        *({"bbox_shift": 3}, {"extra_margin": 20}, {"fps": 30}, {"geometry": "musetalk"}, {"geometry": "box"}),
        *({"smoothing": "one_euro"}, {"affine_tracking_enabled": False}, {"scale_lock_warmup_frames": 50}),
    ],
)
async def test_an_avatar_with_another_setting_is_prepared_again(preparations, clip, change):
    config = {"avatar_id": "me", "video_path": str(clip)}
    await started(**config)
    with pytest.raises(AvatarNotFound):
        await started(**config, preparation=False, **change)
    await started(**config, **change)
    assert len(preparations) == 2
    await started(**config, preparation=False, **change)


async def test_an_avatar_of_another_video_is_prepared_again(preparations, clip, tmp_path):
    await started(avatar_id="me", video_path=str(clip))
    other = write_clip(tmp_path / "other.mp4", [astronaut()] * 2)
    await started(avatar_id="me", video_path=str(other))
    assert [source for source, *_ in preparations] == [clip, other]


async def test_an_avatar_with_another_vae_is_prepared_again(preparations, clip, monkeypatch):
    await started(avatar_id="me", video_path=str(clip))
    monkeypatch.setattr(deployments.avatars, "vae_fingerprint", lambda folder: "another")
    with pytest.raises(AvatarNotFound):
        await started(avatar_id="me", video_path=str(clip), preparation=False)


async def test_the_mask_settings_matter_only_for_the_geometry_musetalk(preparations, clip):
    raw = {"video_path": str(clip), "preparation": False, "parsing_mode": "raw"}
    await started(avatar_id="me", video_path=str(clip), geometry="musetalk")
    await started(avatar_id="me", video_path=str(clip), geometry="musetalk", preparation=False)
    with pytest.raises(AvatarNotFound):
        await started(avatar_id="me", geometry="musetalk", **raw)
    await started(avatar_id="you", video_path=str(clip))
    await started(avatar_id="you", **raw)


async def test_an_avatar_from_before_the_smoothing_settings_existed_stays_valid(preparations, clip, monkeypatch):
    await started(avatar_id="me", video_path=str(clip))
    describe = AvatarStore.describe

    def describe_old(store, avatar_id):
        facts = describe(store, avatar_id)
        settings = {key: value for key, value in facts["settings"].items() if key not in SMOOTHING_KEYS}
        return {**facts, "settings": settings | {"scale_lock": True}}

    monkeypatch.setattr(AvatarStore, "describe", describe_old)
    await started(avatar_id="me", video_path=str(clip), preparation=False)
    assert len(preparations) == 1


async def test_a_missing_video_is_reported(encoder):
    with pytest.raises(VideoError, match=r"'gone\.mp4' was not found"):
        await started(video_path="gone.mp4")


async def suggested_command(clip, **config) -> list[str]:
    """The words of the command in the error of a stage that must not prepare its avatar."""
    with pytest.raises(AvatarNotFound, match="'me' is missing or outdated") as caught:
        await started(avatar_id="me", video_path=str(clip), preparation=False, **config)
    return shlex.split(caught.value.remedy.removeprefix("Run: "))


async def test_without_preparation_the_error_suggests_a_command_with_the_changed_settings(preparations, clip):
    words = await suggested_command(clip, bbox_shift=-4, fps=30)
    expected = ["warmtalk", "prepare", str(clip), "--avatar-id", "me"]
    assert words == [*expected, "--set", "bbox_shift=-4", "--set", "fps=30", "--force"]
    assert preparations == []


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"geometry": "box", "smoothing": "kalman", "scale_lock_enabled": False, "subpixel_enabled": False},
        {"smoothing": "one_euro", "min_cutoff": 0.5, "beta": 0.2, "d_cutoff": 2.0, "fps": 24},
        {"smooth_s": 0.11, "scale_lock_warmup_frames": 5, "affine_tracking_enabled": False},
        {"geometry": "musetalk", "parsing_mode": "raw", "extra_margin": 0, "parser_weights": None},
    ],
)
async def test_the_suggested_command_prepares_the_avatar_exactly_as_the_stage_would(
    preparations, clip, chosen, tmp_path
):
    words = await suggested_command(clip, **chosen)
    done = CliRunner().invoke(cli.app, words[1:])
    assert done.exit_code == 0, done.output
    await started(avatar_id="me", video_path=str(clip), preparation=False, **chosen)  # the avatar is current
    AvatarStore(tmp_path / "results" / "avatars").remove("me")
    await started(avatar_id="me", video_path=str(clip), preparation=True, **chosen)
    by_command, by_stage = preparations
    assert by_command == by_stage


# --- preparing on request


async def test_a_preparation_reports_its_progress_and_its_result(encoder, clip):
    stage = await started()
    events = await prepare(stage, clip)
    assert events[-1]["report"]["frames"] == FRAMES
    steps = {(event["step"], event["done"]) for event in events[:-1]}
    assert steps >= {("finding faces", FRAMES), ("encoding faces", FRAMES)}
    with pytest.raises(ExistsError):
        await prepare(stage, clip)
    with pytest.raises(IdError):
        await prepare(stage, clip, "../me")


async def test_an_error_is_raised_after_the_progress_before_it(encoder, tmp_path):
    grey = write_clip(tmp_path / "grey.mp4", [astronaut() * 0 + 90] * 4)
    stage, events = await started(), []
    with pytest.raises(NoFaceError):
        async for event in stage.prepare(str(grey), "me"):
            events.append(event)
    assert events and "me" not in await names(stage)


async def test_closing_a_preparation_stops_it_and_leaves_no_files(encoder, clip, tmp_path):
    stage = await started(batch_size=1)
    encoder.gate.clear()
    events = stage.prepare(str(clip), "me")
    async for event in events:
        if event["step"] == "finding faces" and event["done"] == FRAMES:
            break
    await events.aclose()
    encoder.gate.set()
    await stage.worker.run(lambda: None)  # wait until the compute thread is free
    assert encoder.calls <= 1
    assert "me" not in await names(stage)
    assert list((tmp_path / "results" / "avatars").glob("[!.]*")) == []
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_avatars_can_be_listed_during_a_preparation(encoder, clip):
    stage = await started()
    encoder.gate.clear()
    work = asyncio.create_task(prepare(stage, clip))
    while not encoder.calls:
        await asyncio.sleep(0.01)
    assert await asyncio.wait_for(names(stage), 10) == ["presenter"]  # although the encoder is blocked
    encoder.gate.set()
    assert (await work)[-1]["report"]["frames"] == FRAMES


async def test_a_preparation_without_progress_is_a_fault_of_the_replica(encoder, clip):
    stage = await started(hung_after_s=0.05)
    encoder.gate.clear()
    work = asyncio.create_task(prepare(stage, clip))
    while not (encoder.calls and stage.fault()):
        await asyncio.sleep(0.01)
    assert "Avatars._prepare has run for" in stage.fault() and "the limit is 0.1 s" in stage.fault()
    encoder.gate.set()
    await work
    assert stage.fault() == ""


async def test_only_a_change_of_the_model_loads_it_again(preparations, encoder, clip):
    stage = await started()
    await prepare(stage, clip)
    await stage.reconfigure({"batch_size": 2})
    await prepare(stage, clip, force=True)
    assert encoder.loads == 1
    await stage.reconfigure({"batch_size": 2, "dtype": "bfloat16"})
    await prepare(stage, clip, force=True)
    assert encoder.loads == 2


async def test_without_the_parsers_weights_the_mask_follows_the_landmarks(encoder, clip, tmp_path):
    stage = await started(geometry="musetalk")
    events = await prepare(stage, clip)
    assert any("mask follows the landmarks" in warning for warning in events[-1]["report"]["warnings"])
    path = tmp_path / "weights" / "face-parse-bisent" / "79999_iter.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    assert prepare_options(stage.config, {}).parser_weights == path
    with pytest.raises(WeightsError, match="79999_iter.pth"):
        await prepare(stage, clip, "you")


async def test_a_missing_weights_file_of_dwpose_is_reported(encoder, clip):
    stage = await started(detector="dwpose")
    with pytest.raises(WeightsError, match=r"weights/dwpose/dw-ll_ucoco_384\.onnx is missing"):
        await prepare(stage, clip)


def test_options_of_a_request_override_the_config():
    config = Avatars().config.model_copy(update={"bbox_shift": 7})
    chosen = prepare_options(config, {"bbox_shift": None, "fps": 30})
    assert (chosen.bbox_shift, chosen.fps) == (7, 30)
    with pytest.raises(ConfigError, match="fps is 17"):
        prepare_options(config, {"fps": 17})


# --- posters and removal


async def test_a_poster_is_a_small_picture_of_the_face(monkeypatch, tmp_path):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    stage = await started()
    data = await stage.poster("presenter")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (288, 288, 3) and len(data) < 40_000
    skin = picture[130:160, 130:160].reshape(-1, 3).mean(axis=0)
    assert skin[2] > skin[1] > skin[0] and skin[2] > 120  # BGR: the centre of the picture is the face
    assert await stage.poster("presenter") is data  # cached
    with pytest.raises(AvatarNotFound):
        await stage.poster("nobody")


async def test_a_removed_avatar_is_not_listed_and_has_no_poster(preparations, clip, tmp_path):
    stage = await started()
    await prepare(stage, clip)
    assert {facts["avatar_id"]: facts["removable"] for facts in await stage.list()} == {"me": True, "presenter": False}
    await stage.poster("me")
    await stage.remove("me", "presenter")
    assert await names(stage) == ["presenter"] and not stage._posters
    assert list((tmp_path / "results" / "avatars").glob("[!.]*")) == []
    for call in (stage.poster("me"), stage.remove("me")):
        with pytest.raises(AvatarNotFound, match="no avatar 'me'"):
            await call


async def test_an_avatar_that_is_needed_cannot_be_removed(preparations, clip):
    stage = await started(avatar_id="me", video_path=str(clip))
    with pytest.raises(InputError, match=r"'presenter'"):
        await stage.remove("presenter", "presenter")
    with pytest.raises(InputError, match=r"'me' is prepared from video_path at each start"):
        await stage.remove("me")
    await prepare(stage, clip, "you")
    with pytest.raises(InputError, match=r"'you' is the default of new sessions.*another avatar_id of Stitch"):
        await stage.remove("you", "you")
    with pytest.raises(IdError):
        await stage.remove("../you")
    removable = {facts["avatar_id"]: facts["removable"] for facts in await stage.list()}
    assert removable == {"me": False, "presenter": False, "you": True}


async def test_removing_an_own_presenter_restores_the_built_in_one(preparations, clip):
    stage = await started()
    await prepare(stage, clip, "presenter", force=True)
    (own,) = await stage.list()
    assert own["removable"] and own["frames"] == FRAMES
    await stage.remove("presenter", "presenter")
    (built_in,) = await stage.list()
    assert not built_in["removable"] and built_in["frames"] > FRAMES


# --- quota


async def test_avatars_that_wait_for_the_compute_thread_count(encoder, clip, tmp_path):
    stage = await started(max_avatars=2)
    encoder.gate.clear()
    first = asyncio.create_task(prepare(stage, clip, "first"))
    while not encoder.calls:
        await asyncio.sleep(0.01)
    second = asyncio.create_task(prepare(stage, clip, "second"))  # waits for the thread
    while len(list((tmp_path / "results" / "avatars").glob(".draft-second*"))) == 0:
        await asyncio.sleep(0.01)
    with pytest.raises(QuotaError, match="There are 2 avatars"):
        await prepare(stage, clip, "third")
    second.cancel()
    await asyncio.wait({second})
    assert list((tmp_path / "results" / "avatars").glob(".draft-second*")) == []
    third = asyncio.create_task(prepare(stage, clip, "third"))
    encoder.gate.set()
    await asyncio.gather(first, third)
    assert await names(stage) == ["first", "presenter", "third"]


async def test_a_preparation_ends_as_soon_as_the_avatar_is_too_large(encoder, clip, tmp_path):
    stage = await started(max_avatars_gb=1e-6)
    with pytest.raises(QuotaError, match="the limit is 1e-06 GB"):
        await prepare(stage, clip)
    assert encoder.calls == 0, "it was encoded"
    assert list((tmp_path / "results" / "avatars").glob("[!.]*")) == []


async def test_the_configured_avatar_is_prepared_at_the_limit(encoder, clip, prepared, tmp_path):
    copy_avatar(prepared, AvatarStore(tmp_path / "results" / "avatars"), "other")
    stage = await started(max_avatars=1, video_path=str(clip), avatar_id="configured")
    assert await names(stage) == ["configured", "other", "presenter"]
