"""Pictures of a case, checks on its numbers, and the cohort's report as one HTML file.

The work on a case leaves a `preview.png` (`case_preview`) and a small `pictures.json` (`case_pictures`); the
report is made afterwards from those files and the table of results, without opening a volume again.
"""

from diffseglung.report.checks import CHECKS, flags
from diffseglung.report.page import BESIDE, write_report
from diffseglung.report.pictures import CasePictures, case_pictures
from diffseglung.report.preview import case_preview

__all__ = [
    "BESIDE",
    "CHECKS",
    "CasePictures",
    "case_pictures",
    "case_preview",
    "flags",
    "write_report",
]
