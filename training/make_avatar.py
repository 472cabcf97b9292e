"""Prepares the default avatar, models/embedded/avatars/presenter, from the presenter's idle clip with the embedded VAE.

    python -m training.make_avatar

Run it again after the clip or the VAE has changed: the server refuses latents of another VAE when it starts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models.avatar.prepare import PrepareOptions, prepare_avatar
from models.avatar.store import AvatarStore
from models.musetalk import MuseTalk

EMBEDDED = Path(__file__).resolve().parents[1] / "models" / "embedded"
BUDGET_BYTES = 4_200_000  # 150 frames: latents 2.46 MB, frames 1.5 MB, the rest 0.2 MB
CRFS = (12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 24.0)  # the first that fits is used


def make(source: Path, avatars: Path, avatar_id: str, embedded: Path, budget_bytes: int = BUDGET_BYTES) -> Path:
    """Prepare `source` and return the avatar's folder. Raises SystemExit if no quality fits the budget."""
    model = MuseTalk.load(embedded / "musetalk/musetalk.json", embedded / "musetalk/unet.safetensors", embedded / "vae")
    store = AvatarStore(avatars)
    for attempt, crf in enumerate((CRFS[0], *CRFS)):  # first try the clip's own stream, which is not encoded again
        options = PrepareOptions(copy_video=attempt == 0, frames_crf=crf, contact_frames=2, batch_size=8)
        report = prepare_avatar(
            source, avatar_id, store, model.encode_reference, model.vae_fingerprint, options, force=True
        )
        size = folder_bytes(store.folder(avatar_id))
        how = "as they are" if report.video_copied else f"at crf {options.frames_crf:g}"
        print(f"frames {how}: {size / 1e6:.2f} MB")
        if size <= budget_bytes:
            for key, value in report.to_dict().items():
                print(f"{key}: {value}")
            return store.folder(avatar_id)
    store.remove(avatar_id)
    raise SystemExit(f"No quality fits {budget_bytes / 1e6:.2f} MB. Shorten the clip.")


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.make_avatar", description="Prepare the default avatar.")
    parser.add_argument("--source", type=Path, default=EMBEDDED / "presenter" / "presenter.mp4")
    parser.add_argument("--avatars", type=Path, default=EMBEDDED / "avatars")
    parser.add_argument("--avatar-id", default="presenter")
    parser.add_argument("--embedded", type=Path, default=EMBEDDED, help="folder of musetalk/ and vae/")
    chosen = parser.parse_args()
    folder = make(chosen.source, chosen.avatars, chosen.avatar_id, chosen.embedded)
    print(f"{folder}: {folder_bytes(folder) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
