"""The manifest of production checkpoints: source, target path, size, sha256 and licence of each file.

No network access, no torch import; models/weights/installed.py examines the disk. The layout is that of MuseTalk's
manual:

    musetalkV15/{musetalk.json,unet.pth}          musetalk/{musetalk.json,pytorch_model.bin}
    sd-vae/{config.json,diffusion_pytorch_model.bin}
    whisper/{config.json,pytorch_model.bin,preprocessor_config.json}
    face-parse-bisent/{79999_iter.pth,resnet18-5c106cde.pth}
    dwpose/dw-ll_ucoco_384.onnx    GFPGANv1.4.pth    syncnet/latentsync_syncnet.pt    taesd/
    whisper-tiny.en/ and whisper-base/: {config.json,generation_config.json,tokenizer.json,model.safetensors}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from models.errors import ConfigError, WeightsError

FOLDER = "weights"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a Hugging Face repository. revision: a commit if known, else `main`."""

    repository: str
    file: str
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file at an https URL."""

    url: str


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file. path: relative to `weights/`. size_bytes, sha256: None if they are not published."""

    path: str
    source: HubFile | WebFile
    size_bytes: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class WeightSet:
    """Files that belong together. name: for `fetch-weights --only`. what, stage: description and user, for errors."""

    name: str
    what: str
    stage: str
    licence: str
    files: tuple[WeightFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes or 0 for file in self.files)


# --- the manifest. Sizes and hashes are those of the Hub's LFS pointers at the given revisions, as recorded in several
# public lock files. The file name of resnet18 contains the first digits of its hash.

_MUSETALK = "TMElyralab/MuseTalk"
_MUSETALK_REVISION = "3ef28bc5cff08c90ad8178a25f1b570cd800170f"
_VAE = "stabilityai/sd-vae-ft-mse"
_VAE_REVISION = "31f26fdeee1355a5c34592e401dd41e45d25a493"
_WHISPER = "openai/whisper-tiny"
_WHISPER_REVISION = "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"
_TINY_EN = "openai/whisper-tiny.en"
_TINY_EN_REVISION = "87c7102498dcde7456f24cfd30239ca606ed9063"
_BASE = "openai/whisper-base"
_BASE_REVISION = "e37978b90ca9030d5170a5c07aadb050351a65bb"
_TAESD = "madebyollin/taesd"
_TAESD_REVISION = "614f76814bbe30edbe2e627ace1c2234c81a2c0e"
_UNET_CONFIG_SHA256 = "5b6923aee04d71692e0e9846c471e0a4ea07a4f686d39545e472bd4ba17e1b47"  # v1.0 and v1.5 share it

SETS = (
    WeightSet(
        "musetalkV15",
        "the UNet of MuseTalk v1.5",
        "LipSync",
        "MIT code; weights for any use, says upstream",
        (
            WeightFile(
                "musetalkV15/musetalk.json",
                HubFile(_MUSETALK, "musetalkV15/musetalk.json", _MUSETALK_REVISION),
                748,
                _UNET_CONFIG_SHA256,
            ),
            WeightFile(
                "musetalkV15/unet.pth",
                HubFile(_MUSETALK, "musetalkV15/unet.pth", _MUSETALK_REVISION),
                3_400_074_924,
                "7ebf6c98c181e20838e4c0054e96e944ac60d5d692cc01db42839fe11b787007",
            ),
        ),
    ),
    WeightSet(
        "musetalk",
        "the UNet of MuseTalk v1.0",
        "LipSync",
        "MIT code; weights for any use, says upstream",
        (
            WeightFile(
                "musetalk/musetalk.json",
                HubFile(_MUSETALK, "musetalk/musetalk.json", _MUSETALK_REVISION),
                748,
                _UNET_CONFIG_SHA256,
            ),
            WeightFile(
                "musetalk/pytorch_model.bin",
                HubFile(_MUSETALK, "musetalk/pytorch_model.bin", _MUSETALK_REVISION),
                3_400_076_549,
            ),
        ),
    ),
    WeightSet(
        "sd-vae",
        "the VAE sd-vae-ft-mse",
        "LipSync and Avatars",
        "MIT",
        (
            WeightFile(
                "sd-vae/config.json",
                HubFile(_VAE, "config.json", _VAE_REVISION),
                547,
                "92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e",
            ),
            WeightFile(
                "sd-vae/diffusion_pytorch_model.bin",
                HubFile(_VAE, "diffusion_pytorch_model.bin", _VAE_REVISION),
                334_707_217,
                "1b4889b6b1d4ce7ae320a02dedaeff1780ad77d415ea0d744b476155c6377ddc",
            ),
        ),
    ),
    WeightSet(
        "whisper",
        "the Whisper tiny encoder",
        "AudioFeatures",
        "Apache-2.0",
        (
            WeightFile(
                "whisper/config.json",
                HubFile(_WHISPER, "config.json", _WHISPER_REVISION),
                1_983,
                "ffdccec4f3211f4c63310f2b7098f309fe70f3952cedc5e4d11e43f5b2379b98",
            ),
            WeightFile(
                "whisper/pytorch_model.bin",
                HubFile(_WHISPER, "pytorch_model.bin", _WHISPER_REVISION),
                151_095_027,
                "9607f98a2b22d9e229ae43c52ecea79dcede9e0c5cfae67e8da6eda86d8aac1d",
            ),
            WeightFile(
                "whisper/preprocessor_config.json",
                HubFile(_WHISPER, "preprocessor_config.json", _WHISPER_REVISION),
                184_990,
                "9b5cd03a36fbb8a627c64d98a5b5b126ead95a77720723944487311f0110b666",
            ),
        ),
    ),
    WeightSet(
        "whisper-tiny.en",
        "the English Whisper tiny with its decoder",
        "Recognize",
        "Apache-2.0",
        (
            WeightFile(
                "whisper-tiny.en/config.json",
                HubFile(_TINY_EN, "config.json", _TINY_EN_REVISION),
                1_937,
                "b5366317df280f79e6cc366f259f379674f81a8721d458acf2e00680ccb10b1d",
            ),
            WeightFile(
                "whisper-tiny.en/generation_config.json",
                HubFile(_TINY_EN, "generation_config.json", _TINY_EN_REVISION),
                1_621,
                "38744c19d5cede6ff4dab5079c6d6ddc02ca726960bbef208fb602ad5a030eab",
            ),
            WeightFile(
                "whisper-tiny.en/tokenizer.json",
                HubFile(_TINY_EN, "tokenizer.json", _TINY_EN_REVISION),
                2_405_679,
                "5eb60cec1e77aeeb6869a2bb5a8e01a84c3fe5d072d75369343021fe6f5310d0",
            ),
            WeightFile(
                "whisper-tiny.en/model.safetensors",
                HubFile(_TINY_EN, "model.safetensors", _TINY_EN_REVISION),
                151_060_136,
                "db59695928ded6043adaef491a53ef4e12da9611184d77c53baa691a60b958ad",
            ),
        ),
    ),
    WeightSet(
        "whisper-base",
        "the multilingual Whisper base with its decoder",
        "Recognize",
        "Apache-2.0",
        (
            WeightFile(
                "whisper-base/config.json",
                HubFile(_BASE, "config.json", _BASE_REVISION),
                1_983,
                "a153c53883a6799b6f056b4a8d1a515c9926d03994682ba88a7616618d7da0c1",
            ),
            WeightFile(
                "whisper-base/generation_config.json",
                HubFile(_BASE, "generation_config.json", _BASE_REVISION),
                3_807,
                "444b3f636d2fff89dd9ecf549e2a085b61f7ff0fa0246d4628bac6a3b8cc9ba4",
            ),
            WeightFile(
                "whisper-base/tokenizer.json",
                HubFile(_BASE, "tokenizer.json", _BASE_REVISION),
                2_480_466,
                "27fc476bfe7f17299480be2273fc0608e4d5a99aba2ab5dec5374b4482d1a566",
            ),
            WeightFile(
                "whisper-base/model.safetensors",
                HubFile(_BASE, "model.safetensors", _BASE_REVISION),
                290_403_936,
                "07cadb9f25677c8d50df603e66a98fbd842cce45047139baeb16e6219a1e807b",
            ),
        ),
    ),
    WeightSet(
        "face-parse-bisent",
        "BiSeNet, which parses faces into 19 classes",
        "Avatars",
        "MIT code; trained on CelebAMask-HQ (research use)",
        (
            WeightFile(
                "face-parse-bisent/79999_iter.pth",  # a mirror: the original has no direct download
                HubFile(
                    "ManyOtherFunctions/face-parse-bisent", "79999_iter.pth", "0073b233a5a3c4b1377d4dbf49245017938a72b5"
                ),
                53_289_463,
                "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
            ),
            WeightFile(
                "face-parse-bisent/resnet18-5c106cde.pth",
                WebFile("https://download.pytorch.org/models/resnet18-5c106cde.pth"),
                46_827_520,
                "5c106cde386e87d4033832f2996f5493238eda96ccf559d1d62760c4de0613f8",
            ),
        ),
    ),
    WeightSet(
        "GFPGANv1.4",
        "the face restorer GFPGAN v1.4",
        "Enhance",
        "Apache-2.0",
        (
            WeightFile(
                "GFPGANv1.4.pth",
                WebFile("https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth"),
                348_632_874,
                "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
            ),
        ),
    ),
    WeightSet(
        "dwpose",
        "DWPose's whole-body landmarks",
        "Avatars (landmarks: dwpose)",
        "Apache-2.0",
        (
            WeightFile(
                "dwpose/dw-ll_ucoco_384.onnx",
                HubFile("yzd-v/DWPose", "dw-ll_ucoco_384.onnx", "1a7144101628d69ee7a3768d1ee3a094070dc388"),
                134_399_116,
                "724f4ff2439ed61afb86fb8a1951ec39c6220682803b4a8bd4f598cd913b1843",
            ),
        ),
    ),
    WeightSet(
        "syncnet",
        "LatentSync's SyncNet",
        "the quality report",
        "OpenRAIL++",
        (
            WeightFile(
                "syncnet/latentsync_syncnet.pt",
                HubFile("ByteDance/LatentSync", "latentsync_syncnet.pt", "405eda8eab9f65c1a6e0c292a5dee5a08089e2ae"),
                1_488_019_828,
                "38fa63bad3ed2332f647c40a5dc616cb0e233db8579f698f62af4c41965c4da5",
            ),
        ),
    ),
    WeightSet(
        "taesd",
        "the tiny decoder TAESD",
        "LipSync (decoder: tiny)",
        "MIT",
        (
            WeightFile("taesd/config.json", HubFile(_TAESD, "config.json", _TAESD_REVISION)),
            WeightFile(
                "taesd/diffusion_pytorch_model.safetensors",
                HubFile(_TAESD, "diffusion_pytorch_model.safetensors", _TAESD_REVISION),
                9_793_292,
                "db169d69145ec4ff064e49d99c95fa05d3eb04ee453de35824a6d0f325513549",
            ),
        ),
    ),
)
BUNDLES = {"production": ("musetalkV15", "sd-vae", "whisper", "face-parse-bisent", "GFPGANv1.4")}


def all_files() -> list[WeightFile]:
    return [file for entry in SETS for file in entry.files]


def set_of(file: WeightFile) -> WeightSet:
    return next(entry for entry in SETS if file in entry.files)


def selection_names() -> list[str]:
    """The names that `fetch-weights --only` accepts besides file paths."""
    return [*BUNDLES, *(entry.name for entry in SETS)]


def select(only: Iterable[str] = ()) -> list[WeightFile]:
    """The files of the given sets, bundles or paths, in the manifest's order; all files if no name is given.

    only: each item may contain several names separated by commas. Raises ConfigError: unknown name; lists the known.
    """
    asked = [name.strip() for part in only for name in part.split(",") if name.strip()]
    wanted: set[str] = set()
    for name in asked:
        sets = BUNDLES.get(name, (name,))
        found = [file.path for entry in SETS for file in entry.files if entry.name in sets or file.path == name]
        if not found:
            raise ConfigError(f"There are no weights named {name!r}.", f"Use one of {', '.join(selection_names())}.")
        wanted.update(found)
    return [file for file in all_files() if not asked or file.path in wanted]


# --- errors for missing files


def find_set(path: Path | str) -> WeightSet | None:
    """The set of a file or folder under a folder named `weights`, which need not exist; None for other paths."""
    parts = Path(path).parts
    if FOLDER not in parts:
        return None
    inside = "/".join(parts[len(parts) - parts[::-1].index(FOLDER) :])
    for entry in SETS:
        for file in entry.files:
            if inside == file.path or (inside and str(PurePosixPath(file.path).parent) == inside):
                return entry
    return None


def remedy_for(path: Path | str) -> str:
    """The command that downloads a file or folder of the manifest; empty for other paths."""
    entry = find_set(path)
    return f"Run `warmtalk fetch-weights --only {entry.name}`." if entry else ""


def missing_error(path: Path | str, message: str = "", remedy: str = "") -> WeightsError:
    """The error for a missing file or folder: what it is, which stage needs it, and how to download it.

    message: what is wrong; default "PATH is missing". remedy: for paths outside the manifest.
    """
    entry = find_set(path)
    cause = message or f"{path} is missing"
    if entry is None:
        return WeightsError(f"{cause}.", remedy or "Put the weights there, or correct the path.")
    return WeightsError(f"{cause}: {entry.what}, for {entry.stage}.", remedy_for(path))
