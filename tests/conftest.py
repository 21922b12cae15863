"""One thread for every numeric library, as tests run beside each other and sums keep their order; a small cohort."""

import os
from pathlib import Path

import pytest

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of two phantoms and one broken file."""
    from made_model import make_cohort

    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def model(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model, made in this process."""
    from made_model import make_model

    image = cohort.parent / "images" / "phantom-0000.nii.gz"
    return make_model(image, tmp_path_factory.mktemp("model") / "m")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What passing tests have measured: they say it by `record_property("measured", ...)`."""
    for report in terminalreporter.stats.get("passed", []):
        for name, said in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(f"{report.nodeid.split('/')[-1].split('::')[0]}: {said}")
