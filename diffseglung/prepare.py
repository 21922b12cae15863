"""One scan, made ready to learn from: its patches with all that the teacher says of them, or its annotated cells."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from diffseglung.cells import core
from diffseglung.config import Config
from diffseglung.labels import TISSUES, Tissue
from diffseglung.look import look
from diffseglung.mixture import CellTable
from diffseglung.patches import (
    Corner,
    PatchConfig,
    Scan,
    Shape,
    cell_share,
    cut,
    half_a_cell_on,
    on_scan,
    sample_corners,
    seed_of,
)
from diffseglung.schemas import patches_schema
from diffseglung.teacher import describe_patches, describe_windows
from diffseglung.tissue import scan_reference
from diffseglung.volume import Volume


def prepare_case(
    case_id: str, volume: Volume, config: Config, lungs: np.ndarray | None = None, weight: float = 1.0
) -> pa.Table:
    """Patches of one case as a table of `patches_schema`, the same on every machine and in every order.

    `lungs` is a given lung mask on the volume's grid. A case of weight 4 gives four times the patches, as far
    as it has them. Raises ValueError, in words, where no patch can be had.
    """
    seen, stride = look(volume, config, lungs, between=False), config.student.stride_vox
    scan, cells = seen.scan, seen.cells
    quota = replace(config.patches, per_case=max(1, round(config.patches.per_case * weight)))
    corners = sample_corners(scan.lungs, quota, stride, seed_of(config.patches.seed, case_id))
    if not corners:
        raise ValueError(f"no patch of {config.patches.size_vox} voxels holds any lung")
    size = config.patches.size_vox
    local = describe_windows(
        scan.hu,
        core(scan.lungs, config.patches),
        config.teacher,
        size_vox=config.patches.local_window_vox,
        step_vox=(stride,) * 3,
    )
    reference = scan_reference(cells.evidence[cells.inside], config.tissue)
    hu = np.stack([cut(scan.hu, c, size) for c in corners])
    inside = np.stack([cut(scan.lungs, c, size) for c in corners])
    columns = {
        "hu": hu,
        "lungs": inside.astype(np.uint8),
        "teacher": describe_patches(hu, inside, config.teacher),
        "teacher_local": np.stack([cut_cells(local, c, size, (stride,) * 3) for c in corners]),
        "evidence": np.stack([cut_cells(cells.evidence, c, size, config.patches.cell_vox) for c in corners]),
        "descriptors": np.stack(
            [cut_cells(cells.descriptors, c, size, config.patches.cell_vox) for c in corners]
        ),
    }
    n = len(corners)
    scalars = {
        "case_id": [case_id] * n,
        "z0": [c[0] for c in corners],
        "y0": [c[1] for c in corners],
        "x0": [c[2] for c in corners],
        "mode_hu": [reference.mode_hu] * n,
        "mesh": [reference.log_mesh] * n,
    }
    schema = patches_schema(config.patches, config.student)
    lung_ml = f"{seen.anatomy.right_ml + seen.anatomy.left_ml:.3f}".encode()
    schema = schema.with_metadata({**schema.metadata, b"lung_ml": lung_ml})
    return pa.Table.from_arrays(
        [
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(columns[field.name]))
            if field.name in columns
            else pa.array(scalars[field.name], field.type)
            for field in schema
        ],
        schema=schema,
    )


def labelled_cells(
    volume: Volume, truth: np.ndarray, config: Config, lungs: np.ndarray | None = None
) -> tuple[CellTable, np.ndarray]:
    """Cells of one scan whose tissue somebody drew, and that tissue (n,): the one that fills more than half of them.

    truth: uint8 tissue labels on the volume's grid; where it is 0, say on slices that nobody annotated, nothing is
    known. No network looks at the scan: the cells have no features.
    """
    seen = look(volume, config, lungs, between=False)
    cells, tissue = seen.cells, cell_tissues(truth, volume, seen.scan, config.patches)
    which = cells.inside & (tissue > 0)
    evidence = cells.evidence[which]
    reference = scan_reference(cells.evidence[cells.inside], config.tissue)
    table = CellTable(evidence, cells.descriptors[which], np.zeros((len(evidence), 0), np.float32), reference)
    return table, tissue[which]


def cell_tissues(
    truth: np.ndarray, volume: Volume, scan: Scan, patches: PatchConfig, *, between: bool = False
) -> np.ndarray:
    """The tissue (z, y, x) that fills more than half of each cell of a scan, or `between` them; 0 where none does."""
    fine = on_scan(truth, volume, scan)
    if between:
        fine = half_a_cell_on(fine, patches.cell_vox)
    shares = np.stack([cell_share(fine == tissue, patches.cell_vox) for tissue in TISSUES])
    return np.where(shares.max(axis=0) > 0.5, shares.argmax(axis=0) + Tissue.HEALTHY, 0)


def cut_cells(grid: np.ndarray, corner: Corner, size: Shape, cell_vox: Shape) -> np.ndarray:
    """What lies under a patch on a coarser grid whose cells have `cell_vox` voxels."""
    at, cells = (tuple(a // n for a, n in zip(axes, cell_vox, strict=True)) for axes in (corner, size))
    return cut(grid, (at[0], at[1], at[2]), (cells[0], cells[1], cells[2]))
