"""Realism of virtual sections: the same statistics on real and on virtual images, and the numbers of real ones.

``data/realism.csv`` holds what :func:`measure` found on four real sections (numbers only, no pixels). Each test of
``tests/truth/test_realism.py`` compares a virtual section with the range of the real ones. A trained classifier still
tells real from virtual patches (:func:`separability`): that is reported, not hidden and not gated.
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import cKDTree

from ..messages import CourseError
from ..settings import ROOT, rng

TABLE = ROOT / "data" / "realism.csv"
WINDOW = 512  # px, at 0.69 um/px
QUANTILES = np.arange(0.025, 1, 0.05)
BANDS = ("<1", "1-2", "2-4", "4-8", "8-16", "16-32", "32-64", ">64")
FREQUENCIES = np.geomspace(0.012, 0.38, 12)
RADII_UM = (4.0, 6.0, 8.0, 12.0, 20.0, 35.0)
STRATA = {"collagen": (0.0, 0.06), "stroma": (0.06, 0.20), "mixed": (0.20, 0.40)}


def real_numbers() -> pd.DataFrame:
    """Statistics of the real sections: one row per statistic, one column per section."""
    if not TABLE.exists():
        raise CourseError("no such table", "the file of the repository", "git checkout data/realism.csv", file=TABLE)
    return pd.read_csv(TABLE, index_col=0)


def density(image: np.ndarray, white_point: np.ndarray) -> np.ndarray:
    """Optical density -ln((I + 1) / (white + 1)), float32, same shape."""
    return -np.log((image.astype(np.float32) + 1) / (np.asarray(white_point, np.float32) + 1))


def macenko(pixels: np.ndarray, *, least: float = 0.12, share: float = 1.0) -> np.ndarray:
    """Haematoxylin and eosin directions of optical densities (n, 3), float (2, 3) (Macenko et al. 2009)."""
    pixels = pixels[(pixels > least).all(axis=1)]
    _, axes = np.linalg.eigh(np.cov(pixels.T))
    plane = axes[:, [2, 1]] * np.where(axes[0, [2, 1]] < 0, -1, 1)
    angle = np.arctan2(*(pixels @ plane).T[::-1])
    ends = [plane @ [np.cos(a), np.sin(a)] for a in np.percentile(angle, [share, 100 - share])]
    ends.sort(key=lambda v: -v[0])
    return np.abs(np.array(ends)) / np.linalg.norm(ends, axis=1, keepdims=True)


def windows(image: np.ndarray, *, count: int = 16, size: int = WINDOW, seed: int = 0) -> list[np.ndarray]:
    """Random windows that lie on tissue (at least 80 % of them darker than glass), views of the image."""
    step = 16
    small = cv2.resize(image, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA).astype(np.float32)
    glass = np.percentile(small.reshape(-1, 3), 97, axis=0)
    tissue = (density(small, glass).mean(axis=2) > 0.08).astype(np.float32)
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_CLOSE, np.ones((5, 5)))
    side = size // step
    cover = cv2.boxFilter(tissue, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    rows, columns = np.nonzero(cover[: -side or None, : -side or None] > 0.8)
    if not len(rows):
        raise CourseError("no window on tissue", f"tissue of at least {size} px", "use a larger section")
    pick = rng(seed, "realism windows").permutation(len(rows))
    chosen: list[tuple[int, int]] = []
    for i in pick:
        y, x = int(rows[i]) * step, int(columns[i]) * step
        if all(max(abs(y - a), abs(x - b)) > size // 2 for a, b in chosen):
            chosen.append((y, x))
        if len(chosen) == count:
            break
    return [image[y : y + size, x : x + size] for y, x in chosen]


def nuclei(window: np.ndarray, white_point: np.ndarray, stains: np.ndarray, dark: float, mpp: float) -> pd.DataFrame:
    """One simple detector: haematoxylin above ``dark``, split by watershed. Columns x_um, y_um, area_um2."""
    from skimage.segmentation import watershed

    conc = density(window, white_point).reshape(-1, 3) @ np.linalg.pinv(stains)
    haematoxylin = cv2.GaussianBlur(conc[:, 0].reshape(window.shape[:2]).astype(np.float32), (0, 0), 0.5 / mpp)
    mask = haematoxylin > dark
    distance = cv2.GaussianBlur(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5), (0, 0), 0.6)
    reach = 2 * int(round(1.7 / mpp)) + 1
    peaks = (distance == cv2.dilate(distance, np.ones((reach, reach)))) & (distance > 1.0 / mpp)
    markers, count = ndimage.label(peaks, np.ones((3, 3)))
    labels = watershed(-distance, markers, mask=mask)
    index = np.arange(1, count + 1)
    area = ndimage.sum_labels(mask, labels, index) * mpp**2
    centre = np.array(ndimage.center_of_mass(mask, labels, index)).reshape(-1, 2) * mpp
    return pd.DataFrame({"x_um": centre[:, 1], "y_um": centre[:, 0], "area_um2": area}).query("area_um2 > 5")


def _bands(grey: np.ndarray) -> list[float]:
    smooth, values = grey, []
    for sigma in (1, 2, 4, 8, 16, 32, 64):
        wider = cv2.GaussianBlur(grey, (0, 0), sigma)
        values.append(float((smooth - wider).std()))
        smooth = wider
    return [*values, float(smooth.std())]


def _amplitude(grey: np.ndarray) -> np.ndarray:
    """Mean spectral amplitude in rings at FREQUENCIES (cycles per pixel), Hann window."""
    taper = np.hanning(grey.shape[0])[:, None] * np.hanning(grey.shape[1])[None]
    power = np.abs(np.fft.fft2((grey - grey.mean()) * taper)) ** 2
    radius = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.fftfreq(grey.shape[1])[None])
    return np.array([np.sqrt(power[(radius > f * 0.85) & (radius < f * 1.18)].mean()) for f in FREQUENCIES])


def _pattern(cells: pd.DataFrame, side_um: float) -> tuple[float, np.ndarray]:
    """Nearest neighbour over mean spacing (Clark and Evans 1954), and the pair correlation at RADII_UM."""
    points = cells[["x_um", "y_um"]].to_numpy()
    tree, intensity = cKDTree(points), len(points) / side_um**2
    inner = ((points > 45) & (points < side_um - 45)).all(axis=1)
    ratio = tree.query(points[inner], 2)[0][:, 1].mean() * 2 * np.sqrt(intensity)
    rings = []
    for radius in RADII_UM:
        low, high = radius * 0.85, radius * 1.15
        pairs = tree.query_ball_point(points[inner], [high], return_length=True).mean()
        pairs -= tree.query_ball_point(points[inner], [low], return_length=True).mean()
        rings.append(pairs / (intensity * np.pi * (high**2 - low**2)))
    return float(ratio), np.array(rings)


def measure(image: np.ndarray, *, white_point, mpp: float = 0.69, count: int = 16, seed: int = 0) -> pd.Series:
    """All statistics of a section.

    Parameters
    ----------
    image
        uint8 (y, x, 3) RGB at about 0.69 um/px (the scales of the texture are in pixels).
    white_point
        R, G, B of glass.
    count
        Windows of 512 px looked at.

    Returns
    -------
    pandas.Series
        ``lab_L_50`` ... (quantiles of CIE Lab), ``band_1-2`` ... (sd of grey levels in octaves), ``amplitude_03`` ...
        (ring means of the spectrum), ``stain_h_r`` ... (Macenko), ``nuclei_<stratum>_p50`` ... (detected per mm2 in
        150 um fields, by share of nuclear area), ``area_<stratum>`` (median um2), ``neighbour_ratio``, ``pairs_08`` ...
    """
    views = windows(image, count=count, seed=seed)
    stack = np.stack(views)
    result: dict[str, float] = {}
    lab = np.stack([cv2.cvtColor(v.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for v in stack[:, ::3, ::3]])
    for channel, name in enumerate("Lab"):
        for q, value in zip(QUANTILES, np.quantile(lab[..., channel], QUANTILES)):
            result[f"lab_{name}_{round(1000 * q):03d}"] = value
    grey = [cv2.cvtColor(v, cv2.COLOR_RGB2GRAY).astype(np.float32) for v in views]
    result |= dict(zip((f"band_{b}" for b in BANDS), np.sqrt(np.mean(np.square([_bands(g) for g in grey]), axis=0))))
    spectrum = np.sqrt(np.mean(np.square([_amplitude(g) for g in grey]), axis=0))
    result |= {f"amplitude_{i:02d}": v for i, v in enumerate(spectrum)}
    pixels = density(stack[:, ::4, ::4].reshape(-1, 3), white_point)
    stains = macenko(pixels)
    for row, name in enumerate("he"):
        result |= {f"stain_{name}_{c}": v for c, v in zip("rgb", stains[row])}
    conc = pixels[pixels.mean(axis=1) > 0.15] @ np.linalg.pinv(stains)
    for row, name in enumerate("he"):
        for q in (50, 75, 95, 99):
            result[f"concentration_{name}_{q}"] = np.percentile(conc[:, row], q)
    dark = 0.55 * result["concentration_h_95"]
    field, fields, ratios, rings = 150.0, [], [], []
    for view in views:
        found = nuclei(view, white_point, stains, dark, mpp)
        side_um = view.shape[0] * mpp
        if len(found) > 60:
            ratio, ring = _pattern(found, side_um)
            ratios.append(ratio)
            rings.append(ring)
        key = (found.x_um // field).astype(int) * 100 + (found.y_um // field).astype(int)
        whole = int(side_um // field)
        for number, group in found.groupby(key):
            if number // 100 < whole and number % 100 < whole:
                share = group.area_um2.sum() / field**2
                fields.append((len(group) / (field**2 * 1e-6), share, group.area_um2.median()))
    fields = pd.DataFrame(fields, columns=["per_mm2", "share", "area"])
    for name, (low, high) in STRATA.items():
        part = fields[(fields.share >= low) & (fields.share < high)]
        result[f"fields_{name}"] = len(part) / max(len(fields), 1)
        for q in (10, 50, 90):
            result[f"nuclei_{name}_p{q}"] = part.per_mm2.quantile(q / 100) if len(part) > 4 else np.nan
        result[f"area_{name}"] = part.area.median() if len(part) > 4 else np.nan
    result["neighbour_ratio"] = float(np.mean(ratios)) if ratios else np.nan
    for radius, value in zip(RADII_UM, np.mean(rings, axis=0) if rings else [np.nan] * len(RADII_UM)):
        result[f"pairs_{radius:02.0f}"] = value
    return pd.Series(result, dtype=float)


def distances(virtual: pd.Series, real: pd.Series) -> pd.Series:
    """How far one section is from another: earth mover's distance of L, a, b (Lab units), and ratios of the rest."""
    result = {}
    for name in "Lab":
        rows = [r for r in real.index if r.startswith(f"lab_{name}_")]
        result[f"emd_{name}"] = float(np.abs(virtual[rows] - real[rows]).mean())
    for prefix in ("band_", "amplitude_", "pairs_"):
        rows = [r for r in real.index if r.startswith(prefix)]
        result |= {r: float(virtual[r] / real[r]) for r in rows}
    return pd.Series(result)


def _features(patch: np.ndarray) -> list[float]:
    lab = cv2.cvtColor(patch.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return [*lab.mean(0), *lab.std(0), *np.percentile(lab[:, 0], [5, 25, 75, 95]), *_bands(grey)[:6],
            *np.log(_amplitude(grey)[3:])]


def separability(real_patches: np.ndarray, virtual_patches: np.ndarray, *, seed: int = 0) -> float:
    """AUC with which a random forest on 25 hand features tells real from virtual patches (0.5 = cannot, 1 = always).

    Patches are uint8 (n, 224, 224, 3); five-fold cross-validation, so patches of one section lie on both sides of a
    split: an upper bound of the easy kind. Reported as a limitation.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    features = np.array([_features(p) for p in [*real_patches, *virtual_patches]])
    truth = np.r_[np.zeros(len(real_patches)), np.ones(len(virtual_patches))]
    forest = RandomForestClassifier(200, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    guess = cross_val_predict(forest, features, truth, cv=folds, method="predict_proba")
    return float(roc_auc_score(truth, guess[:, 1]))
