"""The radiomic teacher: 34 numbers that say how a piece of lung looks, and that no network has to learn.

`TEACHER` names them; `describe_patches` computes them for patches, `describe_windows` for every place of a
volume. `window_evidence` gives the same places in plain HU, `Standardiser` puts descriptors on one scale;
`flip_batch` mirrors patches together with what was said of them.
"""

from diffseglung.teacher.flips import flip_batch, flipped_columns
from diffseglung.teacher.names import TEACHER, Descriptor, TeacherConfig
from diffseglung.teacher.patches import describe_patches
from diffseglung.teacher.standardise import Standardiser
from diffseglung.teacher.windows import EVIDENCE, describe_windows, hollow, window_evidence

__all__ = [
    "EVIDENCE",
    "TEACHER",
    "Descriptor",
    "Standardiser",
    "TeacherConfig",
    "describe_patches",
    "describe_windows",
    "flip_batch",
    "flipped_columns",
    "hollow",
    "window_evidence",
]
