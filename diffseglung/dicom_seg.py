"""The segmentation as a DICOM SEG object for the PACS: one binary segment for every tissue found."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from diffseglung.labels import TISSUE_RGB, TISSUES, Tissue
from diffseglung.volume import Volume, written_whole

TISSUE_CATEGORY = Code("85756007", "SCT", "Tissue")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LUNG = Code("39607008", "SCT", "Lung")
# Category and type of each segment. SNOMED CT has disorders, not CT appearances, so that two are not exact.
CODES: dict[Tissue, tuple[Code, Code]] = {
    Tissue.HEALTHY: (TISSUE_CATEGORY, Code("113255004", "SCT", "Structure of parenchyma of lung")),
    Tissue.EMPHYSEMA: (ABNORMAL, Code("87433001", "SCT", "Pulmonary emphysema")),
    # No SNOMED CT code for the appearance; DICOM has its own (CID 6104), and it is exact.
    Tissue.GROUND_GLASS: (ABNORMAL, Code("112120", "DCM", "Ground glass opacity")),
    Tissue.FIBROSIS: (ABNORMAL, Code("51615001", "SCT", "Fibrosis of lung")),
    Tissue.CONSOLIDATION: (ABNORMAL, Code("95436008", "SCT", "Lung consolidation")),
    # No exact code in either scheme; the nearest is DICOM's (CID 6101), which leaves the wall unsaid.
    Tissue.CAVITY: (ABNORMAL, Code("112062", "DCM", "Abnormal lucency")),
}
ALGORITHM_FAMILY = Code("123110", "DCM", "Artificial Intelligence")
SERIES_NUMBER = 900


def write_dicom_seg(
    path: str | Path, labels: np.ndarray, volume: Volume, model_name: str, model_version: str
) -> None:
    """Write tissue labels as DICOM SEG, every segment on the very slices that it was found on.

    `labels` is uint8 (z, y, x), canonical, on the grid of the scan, which must have come from DICOM. Segments
    without a voxel are left out, for viewers stumble over them; the others are numbered from 1, as the
    standard demands, and named by their label. Of the patient it says what the standard has it repeat from
    the source series, no more. The same labels of the same scan by the same model get the same UIDs.

    Raises ValueError where the scan is not DICOM, or no tissue was labelled.
    """
    source = volume.source
    if source.kind != "dicom":
        raise ValueError(f"a DICOM SEG refers to DICOM slices; {source.path or 'this scan'} is {source.kind}")
    if labels.shape != volume.shape:
        raise ValueError(f"the labels have shape {labels.shape}, the scan {volume.shape} (z, y, x)")
    found = [tissue for tissue in TISSUES if (labels == tissue).any()]
    if not found:
        raise ValueError("no voxel is labelled; an empty DICOM SEG is not written")
    entropy = [source.sha256, model_name, model_version, hashlib.sha256(labels.tobytes()).hexdigest()]
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[found] = np.arange(1, len(found) + 1)
    images, frames = _in_file_order(source.to_stored(numbers[labels]), volume)
    with _names_kept_out_of_warnings():
        segmentation = Segmentation(
            source_images=images,
            pixel_array=frames,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _segment(number, tissue, model_name, model_version)
                for number, tissue in enumerate(found, start=1)
            ],
            series_instance_uid=generate_uid(entropy_srcs=[*entropy, "series"]),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(entropy_srcs=[*entropy, "instance"]),
            instance_number=1,
            manufacturer="DiffSegLung",
            manufacturer_model_name=model_name,
            software_versions=f"diffseglung {version('diffseglung')}",
            device_serial_number=model_version,
            content_description="Lung tissue by DiffSegLung; for research",
            content_label="LUNG_TISSUE",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=True,
        )
    segmentation.SeriesDescription = f"DiffSegLung {model_version}"[:64]
    with written_whole(path) as beside:
        segmentation.save_as(beside)


@contextmanager
def _names_kept_out_of_warnings() -> Iterator[None]:
    """A patient name of one part, common after de-identification, would end up in a warning and a log."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The string .* is unlikely to represent")
        yield


def _in_file_order(stored: np.ndarray, volume: Volume) -> tuple[list[pydicom.Dataset], np.ndarray]:
    """The source headers, and the labels in the order of their frames, which multi-frame files set."""
    source = volume.source
    files = list(dict.fromkeys(source.files))
    images: list[pydicom.Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    places = [(files.index(file), frame) for file, frame in zip(source.files, source.frames, strict=True)]
    order = sorted(range(len(places)), key=lambda index: places[index])
    return images, stored[order]


def _segment(number: int, tissue: Tissue, model_name: str, model_version: str) -> SegmentDescription:
    category, kind = CODES[tissue]
    return SegmentDescription(
        segment_number=number,
        segment_label=tissue.title,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=model_name, family=ALGORITHM_FAMILY, version=model_version, source="DiffSegLung"
        ),
        anatomic_regions=[LUNG],
        display_color=hd.color.CIELabColor.from_rgb(*TISSUE_RGB[tissue]),
    )
