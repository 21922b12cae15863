"""What a trained model is on disk: safetensors and JSON in a folder. Nothing in it is ever executed."""

import json
import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import numpy as st_numpy
from safetensors import torch as st_torch

from diffseglung.config import Config, digest, from_dict, to_dict
from diffseglung.mixture import Mixture
from diffseglung.student import Student, laid_out, load_weights
from diffseglung.teacher import TEACHER, Standardiser
from diffseglung.tissue import EVIDENCE

FORMAT = 5
FILES = ("model.json", "student.safetensors", "mixture.safetensors")


@dataclass(frozen=True, slots=True)
class Model:
    """A student, the statistics of its teacher and the mixture fitted on both, with the config that made them.

    `info` holds plain values about its origin: git commit, data digest, steps, metrics.
    """

    config: Config
    student: Student
    standardiser: Standardiser
    mixture: Mixture
    info: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model's three files into `folder`, the description last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.student.state_dict().items()}
        st_torch.save_file(weights, folder / "student.safetensors")
        st_numpy.save_file(
            {k: np.ascontiguousarray(v) for k, v in self.mixture.arrays.items()},
            folder / "mixture.safetensors",
        )
        description = {
            "format": FORMAT,
            "config": to_dict(self.config),
            "config_sha256": digest(self.config),
            "teacher": {
                "names": list(TEACHER.names),
                "table": TEACHER.table,
                "standardiser": self.standardiser.to_dict(),
            },
            "evidence": list(EVIDENCE),
            "info": self.info,
        }
        (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        return folder

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> "Model":
        """Read a folder that `save` wrote. Raises ValueError, in words, where it is no such folder."""
        folder = Path(folder)
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} is no DiffSegLung model: it lacks {', '.join(missing)}")
        try:
            description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            weights = st_torch.load_file(folder / "student.safetensors")
            arrays = st_numpy.load_file(folder / "mixture.safetensors")
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise ValueError(f"{folder} holds a damaged model: {error}") from error
        if description.get("format") != FORMAT:
            raise ValueError(
                f"{folder} has model format {description.get('format')}, this version reads format {FORMAT}"
            )
        if tuple(description["teacher"]["names"]) != tuple(TEACHER.names):
            raise ValueError(
                f"{folder} was taught by other descriptors than this version computes; train it again"
            )
        if tuple(description.get("evidence", ())) != EVIDENCE:
            raise ValueError(
                f"{folder} judges cells by other evidence than this version computes; train it again"
            )
        try:
            config: Config = from_dict(description["config"])
            standardiser = Standardiser.from_dict(description["teacher"]["standardiser"])
            student = Student(config.student)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} holds a damaged model: its settings are none of ours ({error})"
            ) from error
        load_weights(student, weights)
        return Model(
            config=config,
            student=laid_out(student.eval().requires_grad_(False)),
            standardiser=standardiser,
            mixture=Mixture(config.mixture, config.tissue, standardiser, arrays),
            info=description["info"],
        )

    @property
    def labelled_scans(self) -> int:
        """How many annotated scans corrected the mixture; 0 of a model without any label."""
        return len(self.info.get("labels", {}).get("scans", ()))

    @property
    def sha256(self) -> str:
        """Digest of everything that decides a label: weights, mixture, statistics, settings."""
        state = sha256(digest(self.config).encode())
        state.update(json.dumps(self.standardiser.to_dict(), sort_keys=True).encode())
        for name, weight in sorted(self.student.state_dict().items()):
            state.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        for name, array in sorted(self.mixture.arrays.items()):
            state.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    def to(self, device: str | torch.device) -> "Model":
        """The same model with its student on a device."""
        laid_out(self.student.to(device))
        return self
