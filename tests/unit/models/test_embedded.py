"""The embedded weights and avatars: small enough for a checkout, and each file matches its checksum."""

from models.weights import checksums
from tests.support.paths import ROOT

EMBEDDED = ROOT / "models" / "embedded"
LIMIT_BYTES = 30 * 10**6


def test_embedded_files_are_below_30_mb_in_all() -> None:
    sizes = {
        path.relative_to(EMBEDDED).as_posix(): path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()
    }
    assert sum(sizes.values()) < LIMIT_BYTES, sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert len(sizes) > 10


def test_every_embedded_file_matches_its_checksum() -> None:
    assert checksums.problems(EMBEDDED) == []
