"""The whole method as one frozen value, and the recipes that make it."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from hashlib import sha256
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from diffseglung.anatomy import AnatomyConfig
from diffseglung.cavity import CavityConfig
from diffseglung.distill import TrainConfig
from diffseglung.features import FeatureConfig
from diffseglung.frozen import frozen
from diffseglung.mixture import MixtureConfig
from diffseglung.patches import PatchConfig
from diffseglung.refine import RefineConfig
from diffseglung.student import StudentConfig
from diffseglung.teacher import TeacherConfig
from diffseglung.tissue import TissueConfig
from diffseglung.volume import VolumeConfig

T = TypeVar("T")


@frozen
class Config:
    """One section a stage, in the order in which a scan meets them."""

    name: str = "demo"
    volume: VolumeConfig = VolumeConfig()
    anatomy: AnatomyConfig = AnatomyConfig()
    patches: PatchConfig = PatchConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    features: FeatureConfig = FeatureConfig()
    mixture: MixtureConfig = MixtureConfig()
    tissue: TissueConfig = TissueConfig()
    cavity: CavityConfig = CavityConfig()
    refine: RefineConfig = RefineConfig()

    def __post_init__(self) -> None:
        stride, patches = self.student.stride_vox, self.patches
        for size, cell in zip(patches.size_vox, patches.cell_vox, strict=True):
            if size % stride or size % cell or stride % cell:
                raise ValueError(
                    f"patches.size_vox {patches.size_vox} must be whole strides of the student ({stride}) and whole "
                    f"cells {patches.cell_vox}, and the stride whole cells"
                )
        for axis in self.train.flip:
            # A window that lies unevenly around its position has another place in a mirror.
            if (patches.local_window_vox[axis] - stride) % 2:
                raise ValueError(
                    f"train.flip {self.train.flip}: a window of {patches.local_window_vox} voxels is not centred on a "
                    f"position of {stride}; both must be even, or both odd"
                )
        if self.features.levels > len(self.student.channels):
            raise ValueError(
                f"features.levels {self.features.levels} are more than the student's {len(self.student.channels)}"
            )
        late = [t for t in self.features.timesteps if not 0 <= t < self.student.timesteps]
        if late:
            raise ValueError(f"features.timesteps {late} lie outside 0..{self.student.timesteps - 1}")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, as they are written to JSON; a subclass's own sections are left out."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(Config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {k: _plain(v) for k, v in asdict(value).items()}
    return list(value) if isinstance(value, tuple) else value


def digest(config: Config) -> str:
    """SHA-256 of the method's settings: two results with the same digest were made the same way."""
    return sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def from_dict(data: dict[str, Any], cls: type[T] = Config) -> T:  # type: ignore[assignment]
    """A config back from plain values; unknown keys are refused in words."""
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    strange = sorted(set(data) - known)
    if strange:
        raise ValueError(
            f"{cls.__name__} has no setting {', '.join(strange)}; it has: {', '.join(sorted(known))}"
        )
    return cls(**{key: _typed(value, hints[key]) for key, value in data.items()})


def _typed(value: Any, hint: Any) -> Any:
    if is_dataclass(hint) and isinstance(value, dict):
        return from_dict(value, hint)  # type: ignore[arg-type]
    if get_origin(hint) is tuple or any(get_origin(a) is tuple for a in get_args(hint)):
        return tuple(value) if isinstance(value, list) else value
    return value


def demo() -> Config:
    """Minutes on two CPU cores."""
    return Config(name="demo", train=TrainConfig(steps=800))


def smoke() -> Config:
    """Seconds; for tests. Too small to be any good."""
    return Config(
        name="smoke",
        anatomy=AnatomyConfig(working_mm=4.0),
        patches=PatchConfig(spacing_mm=(4.0, 4.0, 4.0), per_case=12, overlap=0.0),
        student=StudentConfig(channels=(8, 8, 16), norm_groups=4, timesteps=50, embedding=16),
        train=TrainConfig(steps=6, batch=4, lr_warmup=2, warmup=(2, 4), checkpoint_every=3),
        features=FeatureConfig(timesteps=(5,)),
        refine=replace(RefineConfig(), flow_time=2.8),
    )


def paper() -> Config:
    """The published settings; needs GPUs."""
    return Config(
        name="paper",
        patches=PatchConfig(
            spacing_mm=(1.5, 1.0, 1.0), size_vox=(32, 96, 96), cell_vox=(8, 8, 8), per_case=150,
            local_window_vox=(16, 16, 16),
        ),
        student=StudentConfig(channels=(64, 128, 192, 256), fold=1, norm_groups=32, timesteps=250),
        train=TrainConfig(
            steps=20_000, batch=16, accumulate=2, precision="bfloat16", lr=1e-4, ema=0.995, warmup=(4000, 6000),
            checkpoint_every=1000,
        ),
        features=FeatureConfig(timesteps=(20, 60, 100)),
    )  # fmt: skip


def published() -> Config:
    """As `paper`, with the pooled contrast and the five-cluster mixture of the publication."""
    base = paper()
    return replace(
        base,
        name="published",
        train=replace(base.train, variant="global"),
        mixture=replace(base.mixture, mode="published"),
    )


def undistilled() -> Config:
    """As `demo`, without the teacher: what distillation has to beat."""
    base = demo()
    return replace(base, name="undistilled", train=replace(base.train, variant="none"))


def fine() -> Config:
    """As `demo`, with a bottleneck of 8 mm that meets windows of 16 mm; two and a half times the cost."""
    base = demo()
    return replace(
        base,
        name="fine",
        student=replace(base.student, channels=(32, 64)),
        patches=replace(base.patches, local_window_vox=base.patches.window_vox),
    )


def two_levels() -> Config:
    """As `demo`; of the student the level above the bottleneck is read too, on 8 mm."""
    base = demo()
    return replace(base, name="two_levels", features=replace(base.features, levels=2))


def context() -> Config:
    """As `demo`; each position meets the descriptors of the 64 mm around it."""
    base = demo()
    return replace(base, name="context", patches=replace(base.patches, local_window_vox=(32, 32, 32)))


RECIPES: dict[str, Callable[[], Config]] = {
    "smoke": smoke,
    "demo": demo,
    "paper": paper,
    "published": published,
    "undistilled": undistilled,
    "fine": fine,
    "two_levels": two_levels,
    "context": context,
}


def recipe(name: str) -> Config:
    """The config of that name."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]()
