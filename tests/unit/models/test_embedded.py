"""What ships with the project: small enough for a checkout, and each file listed with its checksum."""

from models.weights import checksums
from tests.support.paths import ROOT

EMBEDDED = ROOT / "models" / "embedded"
LIMIT_BYTES = 30 * 10**6


def test_all_embedded_files_together_stay_under_30_mb() -> None:
    sizes = {
        path.relative_to(EMBEDDED).as_posix(): path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()
    }
    assert sum(sizes.values()) < LIMIT_BYTES, sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert len(sizes) > 10


def test_every_embedded_file_is_what_its_checksum_says() -> None:
    assert checksums.problems(EMBEDDED) == []
