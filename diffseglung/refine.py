"""From what is believed of a lung's cells to its voxels: their density has a say, then borders settle on edges.

`by_density` says what there is, small lesions too; in Sobel-diffusion fusion (`fuse`) soft tissue maps flow inside the
lung until they meet an edge of the CT: borders move, no lesion comes, and every disease keeps its volume.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cc3d
import numba
import numpy as np
from scipy import ndimage

from diffseglung.anatomy.morphology import dilate
from diffseglung.filters import correlated, gaussian
from diffseglung.frozen import frozen
from diffseglung.labels import TISSUES, Tissue
from diffseglung.tissue import voxel_densities


@frozen
class RefineConfig:
    """What a voxel's density may say, how far a tissue map may flow, and which steps in density stop it."""

    flow_time: float = 8.4  # in squared voxels of the finest axis; 0 is off
    pull: float = 1 / 14  # back to u0, per flow time; 1 / sqrt(pull) voxels is how far a voxel is heard
    edge_hu: float = 20.0  # E0: the density step over `edge_mm` at which the flow has halved
    edge_mm: float = 4.0  # what the Sobel operator spans on a 2 mm grid
    smooth_mm: float = 1.0  # standard deviation of the Gaussian before Sobel
    feature_weight: float = 0.0  # share of the feature gradient in the edge, 0 (HU alone) to 1
    hu_power: float = 0.35  # exponent of the HU likelihood in u0, see `temper`
    speck_ml: float = 0.3  # what density alone makes must be as large, a sphere of 8 mm,
    evident: float = 1 / 3  # and that share of it evident,
    evident_solid: float = 1 / 2  # or that of consolidation: vessels are as dense
    blood_hu: float = 140.0  # what is denser is a vessel full of contrast, or bone
    texture_mm: float = 4.0  # fibrosis lies no further from where cells show it: half a cell
    crumb_ml: float = 0.1  # a smaller lesion is none: 6 mm (Fleischner Society, MacMahon 2017)

    def __post_init__(self) -> None:
        if not (0 <= self.flow_time < np.inf and 0 <= self.pull < np.inf):
            raise ValueError(
                f"refine.flow_time is {self.flow_time} and refine.pull {self.pull}: 0 (off) or more is needed of both"
            )
        least = min(self.smooth_mm, self.speck_ml, self.texture_mm, self.crumb_ml)
        if min(self.edge_hu, self.edge_mm) <= 0 or least < 0:
            raise ValueError(
                "refine.edge_hu and refine.edge_mm must be above 0, smooth_mm, speck_ml, texture_mm and crumb_ml not "
                "below"
            )
        for name in ("feature_weight", "evident", "evident_solid"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"refine.{name} is {getattr(self, name)}: a share between 0 and 1 is needed")
        if not 0 <= self.hu_power <= 1:
            raise ValueError(
                f"refine.hu_power is {self.hu_power}: 0 (posterior alone) to 1 (full likelihood)"
            )


OFF = RefineConfig(flow_time=0.0, hu_power=0.0, crumb_ml=0.0)  # each voxel is what the mixture said


class Voxels(NamedTuple):
    """What is known of the voxels (z, y, x) that maps are fused on.

    Their `hu`; bool, which are `lungs`, which of them known `vessels`, and of which density is `evident`; the `mode_hu`
    of the scan's lungs, or of each plane's (z, 1, 1); `spacing_mm`.
    """

    hu: np.ndarray
    lungs: np.ndarray
    vessels: np.ndarray
    evident: np.ndarray
    mode_hu: float | np.ndarray
    spacing_mm: tuple[float, float, float]


class Runs(NamedTuple):
    """The lung as stretches [begin, end) of the flat volume; plane z owns first[z] .. first[z + 1]."""

    first: np.ndarray
    begin: np.ndarray
    end: np.ndarray


# Voxels, tuned on one core: a piece and its neighbours fit the first cache, all steps of a band of planes the second,
# a gap costs less than a new stretch.
PIECE = 2048
GAP = 64
BAND = 4096
CYCLES = 2  # of Fast Explicit Diffusion: one errs three times as much, three take a sixth longer
SLOPE, ACROSS = np.array([[-0.5, 0, 0.5], [0.25, 0.5, 0.25]], np.float32)  # Sobel
ROUNDING = 1e-5  # that much may be missing from a sum of one
# What of a volume may change, a share or so many voxels; how often and how gently weights are mended for that.
KEPT, KEPT_VOX, TRIES, DAMPING = 0.01, 10, 40, 0.5
CUBE = np.ones((2, 2, 2), bool)  # voxels; the blurred border of what is dense holds none


def by_density(posterior: np.ndarray, voxels: Voxels, config: RefineConfig) -> np.ndarray:
    """What each voxel is, from what is believed of its surroundings and from its own density (`temper`).

    A vessel in a lesion is the lesion's, whatever its density; contrast, and the voxel beside it that it blurs into,
    says nothing. A lesion smaller than a cell comes to light here, and so does noise, so each that is new is looked at
    again (`without_artefacts`). posterior: float32 (6, z, y, x) over `TISSUES`, 0 outside the lungs; returns the same.
    """
    if config.hu_power == 0:
        return posterior.copy()
    leaned = temper(posterior, voxels.hu, voxel_densities(voxels.mode_hu), config.hu_power)
    silent = voxels.vessels.copy()
    silent[silent] = posterior[:, silent].argmax(axis=0) != Tissue.HEALTHY - 1
    silent |= _blurred(voxels.hu > config.blood_hu)
    leaned[:, silent] = posterior[:, silent]
    return without_artefacts(leaned, posterior, voxels, config)


def fuse(believed: np.ndarray, voxels: Voxels, config: RefineConfig) -> np.ndarray:
    """Sobel-diffusion fusion of what is believed of voxels: `sobel_diffusion`, then `with_volumes`.

    believed: float32 (6, z, y, x) over `TISSUES`, 0 outside the lungs; returns the same.
    """
    if config.flow_time == 0:
        return believed
    fused = sobel_diffusion(believed, voxels.hu, voxels.lungs, voxels.spacing_mm, config)
    return with_volumes(fused, believed, voxels.lungs)


def without_artefacts(
    leaned: np.ndarray, posterior: np.ndarray, voxels: Voxels, config: RefineConfig
) -> np.ndarray:
    """Maps that lean on density, with the posterior again where density alone made what it cannot vouch for.

    Fibrosis is a texture that no voxel shows: it lies no more than `texture_mm` from where the posterior has it, and
    follows no vessel. A lesion of another disease is a body of voxels (26 neighbours) of which it is the most likely;
    density made it where the posterior called no more than half of it the same. Then it stays if it has `speck_ml`
    and if a share of it is `evident`: a vessel's remains and the half wall along the pleura are not, nor is what lies
    within two voxels of what is denser than `blood_hu`. Ground glass fills lung: a layer of one voxel that density
    makes (no `CUBE`) is the blurred border of a mass, a cavity or a vessel. Both maps float32 (6, z, y, x); `leaned`
    changes.
    """
    k = Tissue.FIBROSIS - 1
    mesh, before = (voxels.lungs & (u.argmax(axis=0) == k) for u in (leaned, posterior))
    beyond = mesh & ~dilate(before, config.texture_mm, voxels.spacing_mm)
    leaned[:, beyond] = posterior[:, beyond]
    lesions, tissue, known = _lesions(leaned, posterior)
    size, seen = _voxels(lesions, lesions > 0), _voxels(lesions, known)
    vouched = size * float(np.prod(voxels.spacing_mm)) / 1000 >= config.speck_ml
    evident = voxels.evident & ~_blurred(_blurred(voxels.hu > config.blood_hu))
    solid = _voxels(lesions, tissue == Tissue.CONSOLIDATION) > 0
    share = np.where(solid, config.evident_solid, config.evident)
    vouched &= _voxels(lesions, (lesions > 0) & evident) >= share * size
    vouched &= _voxels(lesions, tissue == Tissue.FIBROSIS) == 0
    _put_back(leaned, posterior, lesions, (2 * seen <= size) & ~vouched)
    haze, before = (u.argmax(axis=0) == Tissue.GROUND_GLASS - 1 for u in (leaned, posterior))
    haze &= voxels.lungs
    layer = haze & ~before & ~ndimage.binary_opening(haze, CUBE)
    leaned[:, layer] = posterior[:, layer]
    return leaned


def with_volumes(fused: np.ndarray, believed: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """The fused maps, weighted so that every disease keeps the volume that was believed; no lesion is new.

    Lesions that were mostly believed to be something else are so again, and so is, in the end, what was nowhere
    believed to be the same. The weights, one a disease and scan, make its border that of another threshold (Jacobs,
    Merkurjev and Esedoglu, "Auction dynamics", J Comput Phys 2018); where a map is a step no weight splits it, and a
    small volume may be off by more than `KEPT`. Both maps float32 (6, z, y, x); `fused` changes.
    """
    lesions, _, known = _lesions(fused, believed)
    _put_back(fused, believed, lesions, 2 * _voxels(lesions, known) <= _voxels(lesions, lesions > 0))
    weighted = fused[:, lungs]
    wanted = np.bincount(believed[:, lungs].argmax(axis=0), minlength=len(TISSUES))
    held = [k for k in range(Tissue.EMPHYSEMA - 1, Tissue.CAVITY - 1) if wanted[k]]
    for _ in range(TRIES):
        now = np.bincount(weighted.argmax(axis=0), minlength=len(TISSUES))
        if (np.abs(now - wanted) <= np.maximum(KEPT * wanted, KEPT_VOX))[held].all():
            break
        ratio = wanted[held, None] / np.maximum(now[held, None], 1)
        weighted[held] *= np.clip(ratio, 1 / np.e, np.e) ** DAMPING
    fused[:, lungs] = weighted / np.maximum(weighted.sum(axis=0), 1e-9)
    lesions, _, known = _lesions(fused, believed)
    return _put_back(fused, believed, lesions, _voxels(lesions, known) == 0)


def _blurred(dense: np.ndarray) -> np.ndarray:
    """What is dense, and the voxels beside it that are partly so (bool)."""
    return ndimage.binary_dilation(dense)


def _lesions(maps: np.ndarray, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bodies of one most likely disease, numbered (z, y, x); their tissue (uint8); which `earlier` maps called so."""
    tissue, before = ((u.argmax(axis=0) + 1).astype(np.uint8) for u in (maps, earlier))
    tissue[(tissue == Tissue.HEALTHY) | ~maps.any(axis=0)] = 0
    return cc3d.connected_components(tissue), tissue, tissue == before


def _voxels(lesions: np.ndarray, of: np.ndarray) -> np.ndarray:
    """How many voxels of a mask each lesion has; the first number is of what is none."""
    return np.bincount(lesions[of], minlength=int(lesions.max()) + 1)


def _put_back(maps: np.ndarray, earlier: np.ndarray, lesions: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The maps (changed) as they were earlier in those lesions."""
    back = which[lesions] & (lesions > 0)
    maps[:, back] = earlier[:, back]
    return maps


def without_crumbs(labels: np.ndarray, fewest_vox: float) -> np.ndarray:
    """Tissue labels with each smaller body of a disease called what most of the voxels around it are.

    labels: uint8 (z, y, x), which change. A body's voxels are 26-neighbours; a sliver of its wall goes to a cavity.
    """
    if fewest_vox <= 1:
        return labels
    mixed = (labels > Tissue.HEALTHY) & (labels < Tissue.CAVITY)
    bodies = cc3d.connected_components(np.where(mixed, labels, np.uint8(0)))
    found = cc3d.statistics(bodies, no_slice_conversion=False)
    for body in 1 + np.flatnonzero(found["voxel_counts"][1:] < fewest_vox):
        box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in found["bounding_boxes"][body])
        own = bodies[box] == body
        around = labels[box][ndimage.binary_dilation(own, np.ones((3, 3, 3))) & ~own]
        votes = np.bincount(around, minlength=Tissue.CAVITY + 1)[1:]
        if votes.any():
            labels[box][own] = votes.argmax() + 1
    return labels


def sobel_diffusion(
    posterior: np.ndarray,
    hu: np.ndarray,
    lungs: np.ndarray,
    spacing_mm: tuple[float, float, float],
    config: RefineConfig,
    feature_edges: np.ndarray | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Let blurred tissue borders settle on the borders that the CT shows; nothing crosses the pleura.

    du/dt = div(g grad u) + r (u0 - u), with g from `conductance` (METHOD.md, "Sobel-diffusion fusion"), in `steps`.
    posterior: u0, float32 (k, z, y, x), one map a tissue. hu, lungs: (z, y, x). feature_edges: float
    (z, y, x), 1 where an edge is as strong as `edge_hu`. Returns float32 (k, z, y, x); outside the lung it
    is u0.
    Every class takes the same linear steps, so maps that summed to one still do, and one of them is what the others
    leave. Steps beyond the explicit limit are no weighted means: what falls below 0 ends as 0. `threads` changes no
    bit.
    """
    _check(posterior, hu, lungs, feature_edges, config)
    refined = np.array(posterior, dtype=np.float32)
    box = lung_box(lungs)
    if box is None or config.flow_time == 0:
        return refined
    lungs = np.asarray(lungs[box], dtype=bool)
    edges = None if feature_edges is None else feature_edges[box]
    flow = np.pad(conductance(hu[box], lungs, spacing_mm, config, edges), 1)
    runs = _runs(np.pad(lungs, 1))
    stride = (flow[0].size, flow.shape[2], 1)
    weights = [(min(spacing_mm) / mm) ** 2 for mm in spacing_mm]
    gates = tuple(_gates(flow.ravel(), s, np.float32(0.5 * w)) for s, w in zip(stride, weights, strict=True))
    planned = steps(config.flow_time, config.pull, 4 * sum(weights))
    inside = refined[(slice(None), *box)]
    core = (slice(1, -1),) * 3

    def settle(some: list[int]) -> None:
        anchor, u, other = (np.zeros_like(flow) for _ in range(3))
        for k in some:
            anchor[core] = inside[k]
            u[:] = other[:] = anchor
            _diffuse(u.ravel(), other.ravel(), anchor.ravel(), gates, runs, stride, planned)
            last = (u if len(planned) % 2 == 0 else other)[core]
            np.copyto(inside[k], np.maximum(last, 0, out=last), where=lungs)

    moving = [k for k, u in enumerate(inside) if u.any()]  # what is nowhere stays nowhere
    whole = inside.sum(axis=0)
    sums_to_one = len(moving) > 1 and bool(
        np.abs(whole - 1, where=lungs, out=np.zeros_like(whole)).max() < ROUNDING
    )
    rest = moving.pop(0) if sums_to_one else None
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(settle, [moving[i::threads] for i in range(threads)]))
    if rest is not None:
        np.copyto(inside[rest], 0, where=lungs)
        others = inside.sum(axis=0)
        np.copyto(inside[rest], np.maximum(1 - others, 0), where=lungs)
        over = lungs & (others > 1)
        inside[:, over] /= others[over]
    return refined


def steps(flow_time: float, pull: float, fastest: float) -> np.ndarray:
    """The steps that reach the flow time in `CYCLES` of Fast Explicit Diffusion, as weights: float32 (steps, 4).

    A step makes keep u + back u_before + pull u0 + flow div(g grad u), the columns in this order. fastest: no map
    evens out at a higher rate. A cycle of n steps spans up to (n^2 + n) / 3 times the explicit limit, 2 / (fastest +
    pull) (Grewenig, Weickert and Bruhn, "From box filtering to fast explicit diffusion", DAGM 2010). Its varied steps
    are taken as a recursion that passes through the ends of all shorter cycles, so rounding does not grow (Hafner et
    al., "FSI schemes: fast semi-iterative solvers for PDEs and optimisation methods", GCPR 2016).
    """
    limit, span, n = 2 / (fastest + pull), flow_time / CYCLES, 1
    while limit * (n * n + n) / 3 < span:
        n += 1
    tau, k = 3 * span / (n * n + n), np.arange(n)
    ahead = (4 * k + 2) / (2 * k + 3)
    back = np.where(k > 0, 1 - ahead, 0)  # there is nothing before the first
    keep = 1 - back - ahead * tau * pull
    cycle = np.stack([keep, back, ahead * tau * pull, ahead * tau], axis=1).astype(np.float32)
    return np.tile(cycle, (CYCLES, 1))


def conductance(
    hu: np.ndarray,
    lungs: np.ndarray,
    spacing_mm: tuple[float, float, float],
    config: RefineConfig,
    feature_edges: np.ndarray | None = None,
) -> np.ndarray:
    """How freely tissue labels flow at each voxel: 1 in even lung, towards 0 at an edge, 0 outside.

    g = m / (1 + (E / E0)^2), float32 (z, y, x); E fuses the HU edge and, by its weight, the feature edge.
    """
    edge = sobel_edges(hu, lungs, spacing_mm, config)
    edge /= np.float32(config.edge_hu)
    if feature_edges is not None and config.feature_weight > 0:
        weight = np.float32(config.feature_weight)
        edge = (1 - weight) * edge + weight * feature_edges.astype(np.float32)
    np.square(edge, out=edge)
    edge += 1
    return np.divide(lungs, edge, out=edge)


def sobel_edges(
    hu: np.ndarray, lungs: np.ndarray, spacing_mm: tuple[float, float, float], config: RefineConfig
) -> np.ndarray:
    """How steeply density changes: Sobel gradient magnitude of smoothed HU, in HU per `edge_mm`.

    float32 (z, y, x). Only lung voxels enter the smoothing: the chest wall is no border between tissues.
    """
    halves = [gaussian(config.smooth_mm / mm) for mm in spacing_mm]
    blur = [np.concatenate([half[:0:-1], half]) for half in halves]
    inside = np.asarray(lungs, dtype=np.float32)
    weight = correlated(inside, *blur)
    density = correlated(np.multiply(hu, inside, dtype=np.float32), *blur)
    np.divide(density, weight, out=density, where=weight > 1e-6)
    squared = np.zeros_like(density)
    for axis, mm in enumerate(spacing_mm):
        slope = correlated(density, *(SLOPE if a == axis else ACROSS for a in range(3)))
        slope *= np.float32(config.edge_mm / mm)
        squared += np.square(slope, out=slope)
    return np.sqrt(squared, out=squared)


def temper(
    posterior: np.ndarray, hu: np.ndarray, densities: Sequence[tuple[float | np.ndarray, float]], power: float
) -> np.ndarray:
    """u0: what the mixture believes about the neighbourhood, leaned on by the voxel's own density.

    u0 is proportional to posterior x N(hu; mean, spread)^power, per class k. posterior: (k, z, y, x); densities: k
    pairs of mean (a number, or what broadcasts to hu) and spread, HU. Returns float32 (k, z, y, x); voxels without
    belief (all zero) stay zero.
    """
    spreads = [spread for _, spread in densities]
    if min(spreads) <= 0:
        raise ValueError(f"the spread must be above 0 HU for every class, not {spreads}")
    leaned = np.empty(posterior.shape, dtype=np.float32)
    density = hu.astype(np.float32)
    for k, (mean, spread) in enumerate(densities):
        leaned[k] = -0.5 * ((density - np.float32(mean)) / np.float32(spread)) ** 2 - np.log(spread)
    # The best class has likelihood 1: far from every mean nothing underflows.
    leaned -= leaned.max(axis=0)
    leaned *= np.float32(power)
    np.exp(leaned, out=leaned)
    leaned *= posterior
    total = leaned.sum(axis=0)
    return np.divide(leaned, total, out=leaned, where=total > 0)


def lung_box(lungs: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box (z, y, x) that holds the lungs, or None where there are none."""
    inside_z = np.flatnonzero([plane.any() for plane in lungs])
    if not len(inside_z):
        return None
    flat = np.any(lungs[inside_z[0] : inside_z[-1] + 1], axis=0)
    z, y, x = (
        slice(int(hit[0]), int(hit[-1]) + 1)
        for hit in (inside_z, np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0)))
    )
    return z, y, x


def _check(
    posterior: np.ndarray,
    hu: np.ndarray,
    lungs: np.ndarray,
    feature_edges: np.ndarray | None,
    config: RefineConfig,
) -> None:
    if posterior.ndim != 4 or posterior.shape[1:] != hu.shape or lungs.shape != hu.shape:
        raise ValueError(
            f"posterior {posterior.shape} (k, z, y, x), hu {hu.shape}, lungs {lungs.shape}: not on one grid"
        )
    if feature_edges is not None and feature_edges.shape != hu.shape:
        raise ValueError(f"feature_edges {feature_edges.shape} are not on the grid of hu {hu.shape}")
    if feature_edges is None and config.feature_weight > 0:
        raise ValueError("refine.feature_weight is above 0 but no feature_edges were given")


def _runs(lungs: np.ndarray) -> Runs:
    """Cut each plane of the padded lung mask into stretches of the flat volume, most of them lung.

    Short gaps are walked over: outside the lung nothing flows, so nothing changes there.
    """
    begins, ends, first = [], [], [0]
    area = lungs[0].size
    for z, plane in enumerate(lungs):
        inside = np.flatnonzero(plane) + z * area
        if len(inside):
            breaks = np.flatnonzero(np.diff(inside) > GAP)
            cuts = zip(inside[np.r_[0, breaks + 1]], inside[np.r_[breaks, -1]] + 1, strict=True)
            pieces = [(b, min(b + PIECE, e)) for begin, e in cuts for b in range(begin, e, PIECE)]
            begins += [b for b, _ in pieces]
            ends += [e for _, e in pieces]
        first.append(len(begins))
    return Runs(np.array(first, np.int64), np.array(begins, np.int64), np.array(ends, np.int64))


@numba.njit(nogil=True, cache=True)
def _gates(flow, stride, weight):
    """What passes between each voxel and the one before it along the axis of that stride, per flow time: flat float32.

    The mean of their conductances: the least of them would place a step edge twice. Nothing comes from outside the
    lung, where conductance is 0.
    """
    gates = np.zeros_like(flow)
    for i in range(stride, len(flow)):
        own, before = flow[i], flow[i - stride]
        gates[i] = weight * (own + before) if own > 0 and before > 0 else np.float32(0)
    return gates


@numba.njit(nogil=True, cache=True)
def _diffuse(u, other, anchor, gates, runs, stride, planned):
    """All steps of one class, to and fro between two flat buffers; after an even number the result is in `u`.

    They advance together as a wave through z, band by band of the planes: step t may treat plane z as soon as step
    t - 1 has treated z + 1, and a band a row less than that step's, so that values stay in the cache for all steps.
    """
    depth = len(runs.first) - 1
    area, row, _ = stride
    for band in range(0, area + len(planned) * row, BAND):
        for front in range(depth - 1 + len(planned)):
            for t in range(max(0, front - depth + 1), min(len(planned), front + 1)):
                plane = front - t
                begin = plane * area + max(0, band - t * row)
                end = plane * area + min(area, band + BAND - t * row)
                old, new = (u, other) if t % 2 == 0 else (other, u)
                for r in range(runs.first[plane], runs.first[plane + 1]):
                    b, e = max(begin, runs.begin[r]), min(end, runs.end[r])
                    if b < e:
                        _step(b, e, old, new, anchor, gates, stride, planned[t])


@numba.njit(nogil=True, cache=True)
def _step(b, e, old, new, anchor, gates, stride, weights):
    """One step on one run, whose `new` are the values of the step before: each voxel trades with its six neighbours."""
    out, u, flow = new[b:e], old[b:e], weights[3]
    _lean(out, u, anchor[b:e], weights)
    for axis in range(3):
        s, gate = stride[axis], gates[axis]
        _trade(out, u, old[b - s : e - s], gate[b:e], old[b + s : e + s], gate[b + s : e + s], flow)


# Short loops over few arrays: the compiler vectorises these, and not one loop over all fifteen.
@numba.njit(nogil=True, cache=True)
def _lean(out, u, anchor, weights):
    keep, back, pull = weights[0], weights[1], weights[2]
    for i in range(len(out)):
        out[i] = keep * u[i] + back * out[i] + pull * anchor[i]


@numba.njit(nogil=True, cache=True)
def _trade(out, u, before, gate_before, behind, gate_behind, flow):
    for i in range(len(out)):
        out[i] += flow * (gate_before[i] * (before[i] - u[i]) + gate_behind[i] * (behind[i] - u[i]))
