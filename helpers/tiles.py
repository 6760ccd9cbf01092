"""Methods: square tiles under the spots, their quality control with a reason per tile, and augmentation.

A tile's side is given in **microns** and converted through the section's pixel size. Tiles come as uint8 RGB
arrays (n, out_px, out_px, 3).
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

from helpers import section as sec
from helpers.messages import CourseError

OUT_PX = 299
"""Tile side after resizing, in pixels: the input of Xception and InceptionV3."""
MIN_TISSUE = 0.70
"""Smallest share of a tile that must be tissue (STimage's preprocessing)."""
REASONS = ("border", "low_tissue", "white", "black", "pen", "flat", "blurred", "single_stain")
"""Why a tile is dropped, in the order of the tests: the first that applies is given."""
QC_LIMITS = {
    "white": 0.05,  # median optical density (mean over channels) below this is glass
    "black": 60.0,  # share > .5 of pixels whose brightest channel is below this: ink, fold, edge of the scan
    "flat": 2.0,  # standard deviation of grey below this: nothing to see
    "pen": 0.05,  # share of pixels with a colour that no mixture of haematoxylin and eosin has
    "blurred": 0.08,  # detail below 2 um, as a share of all contrast: an in-focus section has 0.1 to 0.4
    "single_stain": 0.03,  # 99th percentile of a stain's concentration, relative to the slide's
}
_QC_PX = 96


def side_px(section, side_um: float) -> int:
    """Return a tile's side in full-resolution pixels (at least 2)."""
    if not side_um > 0:
        raise CourseError(f"a tile of {side_um} um", "a positive size in microns", "set TILE_UM, e.g. 100")
    return max(2, round(sec.um_to_px(section, side_um)))


def boxes(xy_px, side: int):
    """Return the top-left corners of square tiles centred on spots, int array (n, 2): x0, y0 in pixels."""
    return np.rint(np.asarray(xy_px, float) - side / 2).astype(int)


def inside(corners, side: int, shape_px):
    """Return which tiles lie wholly inside an image of ``shape_px`` (height, width); bool (n,)."""
    rows, columns = shape_px
    corners = np.asarray(corners)
    return (corners >= 0).all(1) & (corners[:, 0] + side <= columns) & (corners[:, 1] + side <= rows)


def iterate(section, *, side_um: float, out_px: int = OUT_PX, border: str = "drop", batch: int = 256, which=None):
    """Yield batches of tiles; the slide is read once and memory does not grow with the number of spots.

    Parameters
    ----------
    section
        A checked section.
    side_um
        Side of the square in microns of tissue.
    out_px
        Side after resizing, in pixels (area interpolation when shrinking, cubic when enlarging).
    border
        What to do with a tile that leaves the image: ``"drop"`` yields no tile for it; ``"white"`` fills the
        outside with white; ``"refuse"`` raises.
    which
        Indices of the spots to cut (default all).

    Yields
    ------
    index : int array (b,)
        Positions of the spots in the section's table.
    tiles : uint8 array (b, out_px, out_px, 3)
    """
    if border not in ("drop", "white", "refuse"):
        raise CourseError(f"border={border!r}", "'drop', 'white' or 'refuse'", "choose one")
    side = side_px(section, side_um)
    corners = boxes(sec.xy(section), side)
    chosen = np.arange(len(corners)) if which is None else np.asarray(which, int)
    within = inside(corners, side, sec.shape(section))
    if border == "refuse" and not within[chosen].all():
        raise CourseError(
            f"{(~within[chosen]).sum()} tiles of {side_um:g} um that leave the image",
            "tiles inside the image",
            "use a smaller tile, or border='drop'",
            file=section.attrs.get("source"),
        )
    if border == "drop":
        chosen = chosen[within[chosen]]
    picture = sec.image(section)
    rows, columns = picture.shape[:2]
    interpolation = cv2.INTER_AREA if side >= out_px else cv2.INTER_CUBIC
    for start in range(0, len(chosen), batch):
        index = chosen[start : start + batch]
        out = np.empty((len(index), out_px, out_px, 3), np.uint8)
        for k, (x0, y0) in enumerate(corners[index]):
            tile = picture[max(y0, 0) : y0 + side, max(x0, 0) : x0 + side]
            if not within[index[k]]:
                above, left = max(-y0, 0), max(-x0, 0)
                below, right = max(y0 + side - rows, 0), max(x0 + side - columns, 0)
                tile = cv2.copyMakeBorder(tile, above, below, left, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))
            out[k] = cv2.resize(tile, (out_px, out_px), interpolation=interpolation)
        yield index, out


def cut(section, *, side_um: float, out_px: int = OUT_PX, border: str = "drop", which=None, transform=None):
    """Return all tiles at once: (index, tiles). See :func:`iterate`; ``transform`` recolours each batch."""
    parts = [
        (index, tiles if transform is None else transform(tiles))
        for index, tiles in iterate(section, side_um=side_um, out_px=out_px, border=border, which=which)
    ]
    if not parts:
        return np.empty(0, int), np.empty((0, out_px, out_px, 3), np.uint8)
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


# ---------------------------------------------------------------- quality control
def _pen_share(tiles) -> np.ndarray:
    """Return the share of pixels whose channel differences exceed what haematoxylin and eosin can produce.

    For a stain with optical densities (a, b) per unit concentration in two channels, the largest difference of the
    two over all concentrations c is ``255 (exp(-b c) - exp(-a c))`` at ``c = ln(a/b)/(a-b)``: 85 (B-R) and 30 (G-R) for
    haematoxylin (.77, .56, .30), 75 (R-G) for eosin (.36, .82, .45). The limits stand well above.
    """
    red, green, blue = (tiles[..., c].astype(np.int16) for c in range(3))
    ink = (blue - red > 115) | (green - red > 60) | (red - green > 135)
    return ink.mean((1, 2))


def _sharpness(tile, tile_mpp: float) -> float:
    """Return grey contrast finer than 2 um over all contrast of one tile; NaN where a pixel is wider than 2 um."""
    if tile_mpp > 2:
        return float("nan")
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY).astype(np.float32)
    total = grey.std()
    return float((grey - cv2.GaussianBlur(grey, (0, 0), 1.0 / tile_mpp)).std() / total) if total > 0 else 0.0


def measure(tiles, *, tile_mpp: float, white_point=(255.0, 255.0, 255.0), stains=None):
    """Measure what the quality control judges.

    Parameters
    ----------
    tiles
        uint8 (n, y, x, 3), as cut from the slide, before any normalisation.
    tile_mpp
        Microns per pixel of these tiles (side_um / out_px).
    white_point
        Glass colour of the slide (R, G, B).
    stains
        Optional (vectors (2, 3) unit rows haematoxylin and eosin, max_concentration (2,)) of the slide.

    Returns
    -------
    pandas.DataFrame
        One row a tile: ``density`` (median mean-channel OD), ``black`` (share), ``pen`` (share), ``grey_sd``,
        ``sharpness`` (see :func:`_sharpness`), ``haematoxylin`` and ``eosin``
        (99th percentile relative to the slide's; NaN without ``stains``).
    """
    tiles = np.asarray(tiles)
    columns = ["density", "black", "pen", "grey_sd", "sharpness", "haematoxylin", "eosin"]
    if len(tiles) == 0:
        return pd.DataFrame(columns=columns, dtype=float)
    small = np.stack([cv2.resize(t, (_QC_PX, _QC_PX), interpolation=cv2.INTER_AREA) for t in tiles])
    white = np.asarray(white_point, np.float32)
    corrected = np.clip(small * (255.0 / white), 0, 255)
    density = -np.log((small + 1.0) / (white + 1.0)).astype(np.float32)
    grey = np.stack([cv2.cvtColor(t, cv2.COLOR_RGB2GRAY) for t in small])
    table = pd.DataFrame(
        {
            "density": np.median(density.mean(3), axis=(1, 2)),
            "black": (corrected.max(3) < QC_LIMITS["black"]).mean((1, 2)),
            "pen": _pen_share(corrected),
            "grey_sd": grey.std((1, 2)),
            "sharpness": [_sharpness(t, tile_mpp) for t in tiles],
        }
    )
    amount = np.full((len(tiles), 2), np.nan)
    if stains is not None:
        vectors, strongest = (np.asarray(part, float) for part in stains)
        concentration = density.reshape(len(tiles), -1, 3) @ np.linalg.pinv(vectors)  # (n, pixels, 2)
        amount = np.quantile(concentration, 0.99, axis=1) / strongest
    return table.assign(haematoxylin=amount[:, 0], eosin=amount[:, 1])[columns]


def judge(table, *, coverage=None, min_tissue: float = MIN_TISSUE):
    """Give each tile the first reason in :data:`REASONS` that applies, or ``"ok"``.

    Parameters
    ----------
    table
        From :func:`measure`.
    coverage
        Share of each tile that is tissue, float (n,), or None to skip that test.

    Returns
    -------
    pandas.Categorical of length n
    """
    limit = QC_LIMITS
    tests = {
        "low_tissue": np.zeros(len(table), bool) if coverage is None else np.asarray(coverage) < min_tissue,
        "white": table["density"] < limit["white"],
        "black": table["black"] > 0.5,
        "pen": table["pen"] > limit["pen"],
        "flat": table["grey_sd"] < limit["flat"],
        "blurred": table["sharpness"] < limit["blurred"],
        "single_stain": (table["haematoxylin"] < limit["single_stain"]) | (table["eosin"] < limit["single_stain"]),
    }
    reason = np.full(len(table), "ok", object)
    for name in reversed([r for r in REASONS if r in tests]):
        reason[np.asarray(tests[name], bool)] = name
    return pd.Categorical(reason, categories=["ok", *REASONS])


def assess(
    section, *, side_um: float, coverage=None, min_tissue: float = MIN_TISSUE, white_point=(255.0,) * 3, stains=None
):
    """Measure and judge the tile of every spot; tiles are cut in batches and not kept.

    Parameters
    ----------
    coverage
        Share of each spot's tile that is tissue, float (n_spots,), e.g. from ``tissue.coverage``.
    white_point, stains
        As for :func:`measure`.

    Returns
    -------
    pandas.DataFrame
        One row a spot, indexed by spot name: the columns of :func:`measure`, ``coverage`` and ``reason``. A spot whose
        tile leaves the image has the reason ``"border"`` and no measurements.
    """
    names = sec.counts(section).obs_names
    parts, indices = [], [np.empty(0, int)]
    for index, batch in iterate(section, side_um=side_um):
        indices.append(index)
        parts.append(measure(batch, tile_mpp=side_um / OUT_PX, white_point=white_point, stains=stains))
    index = np.concatenate(indices)
    table = pd.concat(parts, ignore_index=True) if parts else measure(np.empty((0, 8, 8, 3)), tile_mpp=1.0)
    covered = np.ones(len(names)) if coverage is None else np.asarray(coverage, float)
    reason = np.full(len(names), "border", object)
    reason[index] = judge(table, coverage=covered[index], min_tissue=min_tissue)
    table = table.set_index(names[index]).reindex(names)
    return table.assign(coverage=covered, reason=pd.Categorical(reason, categories=["ok", *REASONS]))


def spoil(tile, *, white_point, vectors, tile_mpp: float):
    """Damage a good tile in six ways the quality control must recognise.

    Parameters
    ----------
    tile
        uint8 (y, x, 3) with tissue.
    white_point, vectors
        Glass colour (3,) and stain directions (2, 3) of its slide.
    tile_mpp
        Microns per pixel of the tile.

    Returns
    -------
    damaged : uint8 array (6, y, x, 3)
    names : list of str
        The reason each must be given.
    """
    white = np.asarray(white_point, np.float32)
    density = np.clip(-np.log((tile + 1.0) / (white + 1.0)), 0, None)
    eosin = (density @ np.linalg.pinv(np.asarray(vectors)))[..., 1:].clip(0) + 0.3
    pen = tile.copy()
    pen[: len(tile) // 4] = (25, 60, 190)
    damaged = {
        "white": np.broadcast_to(white, tile.shape),
        "black": tile // 12,
        "flat": np.broadcast_to(np.median(tile, axis=(0, 1)).mean(), tile.shape),
        "pen": pen,
        "blurred": cv2.GaussianBlur(tile, (0, 0), 8.0 / tile_mpp),
        "single_stain": white * np.exp(-eosin * np.asarray(vectors)[1]),
    }
    return np.stack([np.rint(picture).astype(np.uint8) for picture in damaged.values()]), list(damaged)


# ---------------------------------------------------------------- for training
def augment(tiles, *, rng):
    """Return each tile turned by a random quarter turn and flipped or not (eight equally likely views)."""
    tiles = np.asarray(tiles)
    out = np.empty_like(tiles)
    turns, flips = rng.integers(0, 4, len(tiles)), rng.integers(0, 2, len(tiles))
    for k, tile in enumerate(tiles):
        turned = np.rot90(tile, turns[k])
        out[k] = turned[:, ::-1] if flips[k] else turned
    return out


def z_transform(tiles):
    """Return float32 tiles with mean 0 and standard deviation 1 each, over all pixels and channels (SpaCell, 2019)."""
    tiles = np.asarray(tiles, np.float32)
    mean = tiles.mean((1, 2, 3), keepdims=True)
    sd = tiles.std((1, 2, 3), keepdims=True)
    return (tiles - mean) / np.where(sd > 0, sd, 1)
