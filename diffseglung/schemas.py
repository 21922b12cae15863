"""Arrow schemas of every table that crosses a stage; their name and version travel in the metadata."""

import json

import pyarrow as pa

from diffseglung.labels import TISSUES
from diffseglung.patches import PatchConfig
from diffseglung.student import StudentConfig
from diffseglung.teacher import TEACHER
from diffseglung.tissue import EVIDENCE

VERSION = "4"


def tensor(kind: pa.DataType, shape: tuple[int, ...]) -> pa.DataType:
    """A fixed-shape tensor column, which plain pyarrow reads back with its shape."""
    return pa.fixed_shape_tensor(kind, shape)


def named(name: str, fields: list[tuple[str, pa.DataType]], **metadata: str) -> pa.Schema:
    """A schema that says what it is."""
    return pa.schema(fields, metadata={"schema.name": name, "schema.version": VERSION, **metadata})


def patches_schema(patches: PatchConfig, student: StudentConfig) -> pa.Schema:
    """One row per patch: CT, lungs, the teacher's numbers for the patch, its positions and its cells.

    What the teacher cannot describe for want of lung is NaN.
    """
    size = patches.size_vox
    positions = tuple(n // student.stride_vox for n in size)
    cells = tuple(n // c for n, c in zip(size, patches.cell_vox, strict=True))
    descriptors = len(TEACHER.names)
    return named(
        "diffseglung.patches",
        [
            ("case_id", pa.string()),
            ("z0", pa.int32()),
            ("y0", pa.int32()),
            ("x0", pa.int32()),
            ("hu", tensor(pa.int16(), size)),
            ("lungs", tensor(pa.uint8(), size)),
            ("teacher", tensor(pa.float32(), (descriptors,))),
            ("teacher_local", tensor(pa.float32(), (*positions, descriptors))),
            ("evidence", tensor(pa.float32(), (*cells, len(EVIDENCE)))),
            ("descriptors", tensor(pa.float32(), (*cells, descriptors))),
            ("mode_hu", pa.float32()),
            ("mesh", pa.float32()),
        ],
        **{
            "teacher.names": json.dumps(list(TEACHER.names)),
            "teacher.table": json.dumps(TEACHER.table),
            "evidence.names": json.dumps(list(EVIDENCE)),
        },
    )


# A sampled cell's own name: its case, its patch's corner, and its number in the patch (z slowest).
CELL_KEY = ("case_id", "z0", "y0", "x0", "cell")


def cells_schema(features: int) -> pa.Schema:
    """One row per sampled cell: what the mixture is fitted on."""
    return named(
        "diffseglung.cells",
        [
            ("case_id", pa.string()),
            *((name, pa.int32()) for name in CELL_KEY[1:]),
            ("evidence", tensor(pa.float32(), (len(EVIDENCE),))),
            ("descriptors", tensor(pa.float32(), (len(TEACHER.names),))),
            ("features", tensor(pa.float32(), (features,))),
            ("mode_hu", pa.float32()),
            ("mesh", pa.float32()),
        ],
    )


CASES = named(
    "diffseglung.cases",
    [
        ("case_id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("image", pa.string()),
        ("patches", pa.int32()),
        ("lung_ml", pa.float64()),
        ("seconds", pa.float64()),
        ("input_sha256", pa.string()),
    ],
)

RESULTS = named(
    "diffseglung.results",
    [
        ("case_id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("lung_ml", pa.float64()),
        *((f"{t.key}_ml", pa.float64()) for t in TISSUES),
        *((f"{t.key}_pct", pa.float64()) for t in TISSUES),
        ("mean_lung_hu", pa.float64()),
        ("laa950_pct", pa.float64()),
        ("uncertainty", pa.float64()),
        ("uncertain_pct", pa.float64()),
        ("teacher_distance", pa.float64()),
        ("air_peak_hu", pa.float64()),
        ("tissue_peak_hu", pa.float64()),
        ("seconds", pa.float64()),
        ("right_lung_ml", pa.float64()),
        ("left_lung_ml", pa.float64()),
        ("flags", pa.string()),
        ("notes", pa.string()),
        ("model_uri", pa.string()),
        ("model_version", pa.string()),
        ("config_sha256", pa.string()),
        ("input_sha256", pa.string()),
    ],
)

SCORES = named(
    "diffseglung.scores",
    [
        ("case_id", pa.string()),
        ("method", pa.string()),
        ("tissue", pa.string()),
        ("dice", pa.float64()),
        ("hd95_mm", pa.float64()),
        ("truth_ml", pa.float64()),
        ("pred_ml", pa.float64()),
        ("false_ml", pa.float64()),
    ],
)

MEASURES = named(
    "diffseglung.measures",
    [
        ("case_id", pa.string()),
        ("method", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("expected", pa.float64()),
    ],
)
