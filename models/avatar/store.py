"""Stores prepared avatars on disk: written completely or not at all, with checksums, without pickle.

    <root>/<avatar id>/
        avatar.json            format, size, fps, frames, source, settings, sha256 of every other file, version
        geometry.safetensors   transforms (n, 2, 3) float32, landmarks (n, 68, 2) float32, has_face (n,) uint8,
                               mask_index (n,) int32: index into masks.png of each frame's mask
                               boxes (n, 4) int32, only with geometry `musetalk`
        latents.safetensors    latents (n, 8, 32, 32) float16
        decoder.safetensors    statistics (n, norms, 2, groups) float32, only with a KL VAE
        masks.png              the different masks, 256 px tiles, 16 per row
        regions.safetensors    the face parser's regions, packed; only with geometry `musetalk` and a parser
        frames.mp4             H.264, short closed GOPs
        contact.png            contact sheet, for a person to check

A new avatar is written to a draft folder beside (`.draft-…`), synced, and renamed. Beside it lies a file that its
process holds (`.draft-….held`), from the request on. Replacing exchanges two folders atomically. A removed avatar is
renamed (`.gone-…`) and then deleted.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from models.avatar.drafts import PREFIX, abandoned_drafts, delete_draft, draft_ids, hold_draft
from models.avatar.mask_atlas import atlas_of, tiles_of
from models.avatar.packed_regions import PackedRegions
from models.avatar.quota import AvatarQuota, size_of
from models.avatar.swap import aside_of, exchange, restore_asides, sync_folder
from models.errors import AvatarNotFound, CorruptError, ExistsError, InputError
from models.media.frames import CACHE_BYTES, VideoFrames
from models.runtime.disk_full import writing_to
from models.runtime.file_lock import hold_lock
from models.runtime.ids import ID_PATTERN, check_id, path_under
from models.types import CROP_PX, CroppedDecoding, CropWindow, Float16, Float32, Int32, PreparedAvatar, UInt8

FORMAT = 1
META, GEOMETRY, LATENTS, DECODER, MASKS, REGIONS, FRAMES, CONTACT = (
    "avatar.json",
    "geometry.safetensors",
    "latents.safetensors",
    "decoder.safetensors",
    "masks.png",
    "regions.safetensors",
    "frames.mp4",
    "contact.png",
)
REMOVED_PREFIX = ".gone-"  # prefix of a removed avatar's folder while it is deleted
LOCK = ".lock"  # locked while drafts are created and counted
NO_QUOTA = AvatarQuota()
PREPARE_AGAIN = "Prepare it again with `warmtalk prepare VIDEO --avatar-id {} --force`."


@dataclass(slots=True)
class Draft:
    """An avatar being written: its files go into `folder`, its description into `meta`, see `AvatarStore.write`."""

    avatar_id: str
    folder: Path
    meta: dict[str, Any] = field(default_factory=dict)
    quota: AvatarQuota = NO_QUOTA
    others_bytes: int = 0  # of the other avatars, when the draft was begun

    def check_quota(self) -> None:
        """Raises QuotaError if the draft has become too large for the quota. Cheap."""
        self.quota.check_bytes(self.others_bytes + size_of(self.folder))

    def write_geometry(
        self,
        transforms: Float32,
        landmarks: Float32,
        has_face: npt.NDArray[np.bool_],
        masks: UInt8,
        mask_index: Int32,
        boxes: Int32 | None = None,
    ) -> None:
        """Write geometry.safetensors and masks.png.

        transforms: `(n, 2, 3)`. landmarks: `(n, 68, 2)`. has_face: `(n,)`. masks: `(u, 256, 256)`. mask_index: `(n,)`.
        boxes: `(n, 4)`, only with geometry `musetalk`.
        """
        n = len(transforms)
        assert transforms.shape == (n, 2, 3) and landmarks.shape == (n, 68, 2) and has_face.shape == (n,), n
        assert masks.shape[1:] == (CROP_PX, CROP_PX) and mask_index.shape == (n,), (masks.shape, mask_index.shape)
        assert mask_index.min() >= 0 and mask_index.max() < len(masks), mask_index
        tensors = {
            "transforms": np.ascontiguousarray(transforms, np.float32),
            "landmarks": np.ascontiguousarray(landmarks, np.float32),
            "has_face": np.ascontiguousarray(has_face, np.uint8),
            "mask_index": np.ascontiguousarray(mask_index, np.int32),
        }
        if boxes is not None:
            assert boxes.shape == (n, 4), boxes.shape
            tensors["boxes"] = np.ascontiguousarray(boxes, np.int32)
        (self.folder / GEOMETRY).write_bytes(safetensors.numpy.save(tensors))
        write_png(self.folder / MASKS, atlas_of(masks))
        self.meta["masks"] = len(masks)

    def write_latents(self, latents: Float16) -> None:
        """Write latents.safetensors: float16 `(n, 8, 32, 32)`, masked face first, then reference."""
        assert latents.dtype == np.float16 and latents.shape[1:] == (8, 32, 32), (latents.dtype, latents.shape)
        (self.folder / LATENTS).write_bytes(safetensors.numpy.save({"latents": np.ascontiguousarray(latents)}))

    def write_decoding(self, decoding: CroppedDecoding) -> None:
        """Write decoder.safetensors and what avatar.json says about it."""
        tensors = {"statistics": np.ascontiguousarray(decoding.statistics, np.float32)}
        (self.folder / DECODER).write_bytes(safetensors.numpy.save(tensors))
        self.meta["decoding"] = {
            **asdict(decoding.window),
            "mean_error": decoding.mean_error,
            "p999_error": decoding.p999_error,
        }

    def write_regions(self, regions: PackedRegions) -> None:
        """Write regions.safetensors: the regions of all frames."""
        (self.folder / REGIONS).write_bytes(safetensors.numpy.save(regions.tensors()))


class AvatarStore:
    """The avatars under `root` and under `builtin`, a second root that is read-only. `root` has precedence."""

    def __init__(
        self, root: Path, builtin: Path | None = None, cache_bytes: int = CACHE_BYTES, quota: AvatarQuota = NO_QUOTA
    ) -> None:
        """quota: of the avatars under `root`."""
        self.root, self.builtin, self.cache_bytes, self.quota = Path(root), builtin, cache_bytes, quota

    def ids(self) -> list[str]:
        """Return all ids, sorted. Folders without avatar.json are ignored."""
        roots = [root for root in (self.root, self.builtin) if root is not None and root.is_dir()]
        found = {path.parent.name for root in roots for path in root.glob(f"*/{META}")}
        return sorted(name for name in found if ID_PATTERN.fullmatch(name))

    def exists(self, avatar_id: str) -> bool:
        """Return whether there is an avatar of this id. Raises IdError."""
        return self._find(avatar_id) is not None

    def folder(self, avatar_id: str) -> Path:
        """Return the avatar's folder. Raises IdError, AvatarNotFound."""
        folder = self._find(avatar_id)
        if folder is None and avatar_id in restore_asides(self.root):
            folder = self._find(avatar_id)
        if folder is None:
            known = ", ".join(self.ids()) or "none"
            raise AvatarNotFound(
                f"There is no avatar {avatar_id!r}; known avatars: {known}.",
                f"Prepare it with `warmtalk prepare VIDEO --avatar-id {avatar_id}`.",
            )
        return folder

    def describe(self, avatar_id: str) -> dict[str, Any]:
        """Return the content of avatar.json. Raises IdError, AvatarNotFound, CorruptError."""
        path = self.folder(avatar_id) / META
        again = PREPARE_AGAIN.format(avatar_id)
        try:
            meta = cast(dict[str, Any], json.loads(path.read_bytes()))
            intact = meta["version"] == _version(meta)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{META} of avatar {avatar_id!r} cannot be read: {error}.", again) from error
        if meta.get("format") != FORMAT:
            raise CorruptError(f"Avatar {avatar_id!r} has format {meta.get('format')}, not {FORMAT}.", again)
        if not intact:
            raise CorruptError(f"{META} of avatar {avatar_id!r} was modified: its version does not match.", again)
        return meta

    def version(self, avatar_id: str) -> str:
        """Return 16 hex digits that change whenever any stored byte changes. Raises as `describe`."""
        return str(self.describe(avatar_id)["version"])

    def check(self, avatar_id: str) -> None:
        """Compare every file with its checksum. Raises as `load`."""
        meta = self.describe(avatar_id)
        for name in meta["sha256"]:
            self._open(avatar_id, name, meta).close()

    def load(self, avatar_id: str, latents: bool = True, frames: bool = True) -> PreparedAvatar:
        """Load an avatar, with or without its latents and frames. Each file that is read is compared with its checksum.

        Raises IdError, AvatarNotFound, and CorruptError, which names the file.
        """
        while True:
            meta = self.describe(avatar_id)
            try:
                return self._load(avatar_id, meta, latents, frames)
            except CorruptError:
                if self.version(avatar_id) == meta["version"]:
                    raise  # with another version it was replaced while reading: read the new one

    def _load(self, avatar_id: str, meta: dict[str, Any], latents: bool, frames: bool) -> PreparedAvatar:
        geometry = self._tensors(avatar_id, GEOMETRY, meta)
        with self._open(avatar_id, MASKS, meta) as file:
            masks = tiles_of(file.read(), int(meta["masks"]), geometry["mask_index"])
        source, regions = None, None
        if frames:
            source = VideoFrames(self._open(avatar_id, FRAMES, meta), f"{FRAMES} of {avatar_id!r}", self.cache_bytes)
            if REGIONS in meta["sha256"]:
                regions = PackedRegions(**self._tensors(avatar_id, REGIONS, meta))
        avatar = PreparedAvatar(
            avatar_id=avatar_id,
            version=meta["version"],
            fps=meta["fps"],
            width=meta["width"],
            height=meta["height"],
            transforms=_frozen(geometry["transforms"]),
            landmarks=_frozen(geometry["landmarks"]),
            masks=masks,
            has_face=_frozen(geometry["has_face"].astype(np.bool_)),
            latents=_frozen(self._tensors(avatar_id, LATENTS, meta)["latents"]) if latents else None,
            frames=source,
            vae_fingerprint=meta["vae_fingerprint"],
            boxes=_frozen(geometry["boxes"]) if "boxes" in geometry else None,
            regions=regions,
            cuts=tuple(meta.get("facts", {}).get("cuts", ())),
            decoding=self._decoding(avatar_id, meta) if latents else None,
        )
        lengths = {"frames": len(avatar), "masks": len(masks), "has_face": len(avatar.has_face)}
        lengths |= {"latents": len(avatar.latents)} if avatar.latents is not None else {}
        lengths |= {DECODER: len(avatar.decoding.statistics)} if avatar.decoding is not None else {}
        lengths |= {FRAMES: len(source)} if source is not None else {}
        lengths |= {"regions": len(regions)} if regions is not None else {}
        if set(lengths.values()) != {meta["frames"]}:
            raise CorruptError(
                f"The files of avatar {avatar_id!r} have different numbers of frames: {lengths}, "
                f"and {META} says {meta['frames']}.",
                PREPARE_AGAIN.format(avatar_id),
            )
        return avatar

    def _decoding(self, avatar_id: str, meta: dict[str, Any]) -> CroppedDecoding | None:
        if DECODER not in meta["sha256"]:
            return None
        facts, statistics = meta["decoding"], _frozen(self._tensors(avatar_id, DECODER, meta)["statistics"])
        window = CropWindow(tuple(facts["rows"]), tuple(facts["columns"]))
        return CroppedDecoding(window, statistics, facts["mean_error"], facts["p999_error"])

    @contextmanager
    def reserve(self, avatar_id: str, force: bool = False) -> Iterator[Draft]:
        """Count an avatar that will be written, for all processes, while the block runs; its folder does not exist yet.

        Raises IdError, ExistsError, QuotaError, DiskFullError.
        """
        path_under(self.root, avatar_id, "avatar id")
        with writing_to(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with hold_lock(self.root / LOCK):
                self.refuse_existing(avatar_id, force)
                self._clean()
                self.quota.check_count({*self._own_ids(), *draft_ids(self.root), avatar_id})
                others = [path for path in self.root.iterdir() if path.is_dir() and path.name != avatar_id]
                others_bytes = sum(map(size_of, others))
                self.quota.check_bytes(others_bytes)
                folder = self.root / f"{PREFIX}{avatar_id}.{secrets.token_hex(8)}"
                held = hold_draft(folder)
        try:
            yield Draft(avatar_id, folder, quota=self.quota, others_bytes=others_bytes)
        finally:
            delete_draft(folder)
            held.release()

    @contextmanager
    def write(self, avatar_id: str, force: bool = False) -> Iterator[Draft]:
        """Yield a draft that becomes the avatar when the `with` block ends; after an error it is deleted.

        With `force`, an existing avatar is replaced atomically; a process that has the old one open can still read it.
        The block must set fps, width, height, frames, vae_fingerprint, source and settings in `draft.meta`.
        Raises IdError, ExistsError at the start (or at the end, if another writer was faster), QuotaError at the start
        (or at the end, if the avatar has become too large), and DiskFullError.
        """
        final = path_under(self.root, avatar_id, "avatar id")
        with self.reserve(avatar_id, force) as draft, writing_to(self.root):
            draft.folder.mkdir()
            yield draft
            _seal(draft)
            draft.check_quota()
            sync_folder(draft.folder)
            self._commit(draft.folder, final, force)

    def refuse_existing(self, avatar_id: str, force: bool = False) -> None:
        """Raise ExistsError if the id exists and `force` is False. Raises IdError."""
        if self.exists(avatar_id) and not force:
            raise ExistsError(
                f"The avatar {avatar_id!r} already exists.", "Use another id, or replace it with --force."
            )

    def _commit(self, folder: Path, final: Path, force: bool) -> None:
        if not final.exists():
            try:
                folder.rename(final)
                sync_folder(self.root, files=False)
                return
            except OSError:
                if not final.exists():
                    raise
        if (final / META).is_file():
            self.refuse_existing(final.name, force)
        exchange(folder, final)  # `folder` now contains the old avatar; the caller deletes it
        sync_folder(self.root, files=False)

    def is_builtin(self, avatar_id: str) -> bool:
        """Return whether an avatar of this id is under `builtin`, also if `root` has one, too. Raises IdError."""
        check_id(avatar_id, "avatar id")
        return self.builtin is not None and (self.builtin / avatar_id / META).is_file()

    def owns(self, avatar_id: str) -> bool:
        """Return whether the avatar is under `root`, and so can be removed. Raises IdError."""
        return (path_under(self.root, avatar_id, "avatar id") / META).is_file()

    def remove(self, avatar_id: str) -> None:
        """Delete an avatar; it is never visible in part. A process that has it open can still read it.

        Raises IdError, AvatarNotFound, InputError for a built-in avatar, and OSError.
        """
        folder = self.folder(avatar_id)
        if not self.owns(avatar_id):
            raise InputError(
                f"The avatar {avatar_id!r} is part of WarmTalk and cannot be removed.",
                "To replace it, prepare an avatar of the same id with --force.",
            )
        aside = aside_of(folder)  # left by an interrupted replacement; `restore_asides` must not restore it later
        for one in (aside, folder):
            removed = self.root / f"{REMOVED_PREFIX}{avatar_id}.{secrets.token_hex(4)}"
            try:
                one.rename(removed)
            except FileNotFoundError:
                continue  # there was none, or another process removed it
            sync_folder(self.root, files=False)
            shutil.rmtree(removed, ignore_errors=True)  # `clean` deletes what another process still has open

    def clean(self) -> list[str]:
        """Delete abandoned drafts and the rest of removed avatars, and undo interrupted replacements.

        Returns the names of all these folders.
        """
        if not self.root.is_dir():
            return []
        with hold_lock(self.root / LOCK):
            return self._clean()

    def _clean(self) -> list[str]:
        restored = restore_asides(self.root)
        abandoned = [*sorted(self.root.glob(f"{REMOVED_PREFIX}*")), *abandoned_drafts(self.root)]
        for folder in abandoned:
            delete_draft(folder)
        return restored + [folder.name for folder in abandoned]

    def _own_ids(self) -> set[str]:
        return {path.parent.name for path in self.root.glob(f"*/{META}") if ID_PATTERN.fullmatch(path.parent.name)}

    def _find(self, avatar_id: str) -> Path | None:
        check_id(avatar_id, "avatar id")
        roots = (self.root,) if self.builtin is None else (self.root, self.builtin)
        folders = (path_under(root, avatar_id, "avatar id") for root in roots)
        return next((folder for folder in folders if (folder / META).is_file()), None)

    def _open(self, avatar_id: str, name: str, meta: Mapping[str, Any]) -> BinaryIO:
        """Open a file of the avatar after comparing its checksum; it is at its start."""
        again = PREPARE_AGAIN.format(avatar_id)
        try:
            file = (self.folder(avatar_id) / name).open("rb")
        except OSError as error:
            raise CorruptError(f"{name} of avatar {avatar_id!r} cannot be read: {error.strerror}.", again) from error
        if file_sha256(file) != meta["sha256"].get(name):
            file.close()
            raise CorruptError(f"{name} of avatar {avatar_id!r} does not match its checksum.", again)
        return file

    def _tensors(self, avatar_id: str, name: str, meta: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        with self._open(avatar_id, name, meta) as file:
            return cast(dict[str, npt.NDArray[Any]], safetensors.numpy.load(file.read()))


def file_sha256(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file; its position is then 0."""
    file.seek(0)
    digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    file.seek(0)
    return digest


def write_png(path: Path, image: UInt8) -> None:
    """Write grey `(h, w)` or RGB `(h, w, 3)` uint8 as PNG."""
    encoded, data = cv2.imencode(".png", image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert encoded, image.shape
    path.write_bytes(data.tobytes())


def _seal(draft: Draft) -> None:
    """Write avatar.json with the checksums of the other files. Its content does not depend on time or machine."""
    sums = {}
    for path in sorted(draft.folder.iterdir()):
        with path.open("rb") as file:
            sums[path.name] = file_sha256(file)
    missing = {GEOMETRY, LATENTS, MASKS, FRAMES} - sums.keys()
    assert not missing, missing
    meta = {"format": FORMAT, "id": draft.avatar_id, **draft.meta, "sha256": sums}
    meta["version"] = _version(meta)
    (draft.folder / META).write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _version(meta: Mapping[str, Any]) -> str:
    content = {key: value for key, value in meta.items() if key != "version"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
