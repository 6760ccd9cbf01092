"""Methods: the tiles HoVer-Net is shown - which may teach, how they are turned, restained and drawn."""

from __future__ import annotations

import numpy as np

from helpers.hovernet_targets import UNKNOWN, centres
from helpers.messages import CourseError


def usable(image, labels, *, least: int = 2, white: float = 0.85, level: int = 200) -> bool:
    """Tell whether a tile may teach: at least ``least`` nuclei, and at most ``white`` of it brighter than ``level``."""
    grey = image.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
    return len(np.unique(labels[labels > 0])) >= least and float((grey > level).mean()) <= white


def dihedral(image, labels, hv, *, mirror_x: bool, mirror_y: bool, swap: bool):
    """Mirror and transpose a tile; its maps change sign or places with it.

    Turning a picture without turning the meaning of its maps loses a quarter of the nuclei and no other number shows.

    Returns
    -------
    image, labels, hv
        Copies where anything changed.
    """
    if mirror_x:
        image, labels, hv = image[:, ::-1], labels[:, ::-1], hv[:, ::-1] * np.float32([-1, 1])
    if mirror_y:
        image, labels, hv = image[::-1], labels[::-1], hv[::-1] * np.float32([1, -1])
    if swap:
        image, labels, hv = (part.swapaxes(0, 1) for part in (image, labels, hv))
        hv = hv[..., ::-1]
    return image, labels, hv


def jitter_stain(image, rng, *, mix: float = 0.06, gain: float = 0.12, strength: float = 0.15):
    """Return the tile as another laboratory might have stained it: optical density mixed and scaled per channel.

    Parameters
    ----------
    image
        uint8 (y, x, 3) RGB.
    mix, gain, strength
        Sd of the 3 x 3 mixing matrix round 1, of the log gain of each channel, and of the log gain of all.

    Returns
    -------
    float32 (y, x, 3), 0 to 255
    """
    density = -np.log(np.maximum(image, 3, dtype=np.float32) / 245)
    matrix = (np.eye(3) + rng.normal(0, mix, (3, 3))) * np.exp(rng.normal(0, gain, 3)) * np.exp(rng.normal(0, strength))
    return np.clip(245 * np.exp(-(density @ matrix.astype(np.float32))), 0, 255)


def _members(fields):
    """Return, for each class that occurs, the places of its nuclei: int64 (n, 3) of field, row, column."""
    found = {}
    for number, f in enumerate(fields):
        area, xy = centres(f.labels)
        label = np.flatnonzero(area[1:]) + 1
        place = np.column_stack([np.full(len(label), number), xy[label][:, ::-1].astype(np.int64)])
        for code in np.unique(f.classes[label]):
            found.setdefault(int(code), []).append(place[f.classes[label] == code])
    return [np.concatenate(found[code]) for code in sorted(found) if code != UNKNOWN]


def batches(
    fields, *, rng, side: int, batch: int, jitter: bool = True, least: int = 2, zoom: float = 0.0, balance: float = 0.7
):
    """Yield training batches without end: random tiles of random fields, turned and restained.

    Parameters
    ----------
    fields
        List of :class:`Field`, each at least ``side`` px wide and high; a field is drawn by its area.
    side
        Side of a tile in px, a multiple of 8.
    batch
        Tiles per batch.
    jitter
        Whether to jitter the stain.
    least
        Nuclei a tile must hold; tiles that fail :func:`usable` are drawn again (20 times at most).
    zoom
        Sd of the log scale of a tile (0: none): nuclei of other sizes are seen, and size says less about type.
    balance
        Share of tiles that hold a nucleus of a class drawn with equal chances; 0 is the published way. Without it a
        class of 4 % of the nuclei is not learned in a minute, while all other numbers look well.

    Yields
    ------
    x : float32 (batch, side, side, 3)
        0 to 255.
    y : float32 (batch, side, side, 4)
        Nucleus 0 or 1, horizontal, vertical, class code.
    """
    import cv2

    small = [f.image.shape for f in fields if min(f.image.shape[:2]) < side]
    if small or not fields:
        raise CourseError(
            f"a field of {small[0][1]} x {small[0][0]} px" if small else "no field", f"fields of at least {side} px",
            "larger sections, or a smaller tile",
        )  # fmt: skip
    area = np.array([f.labels.size for f in fields], float)
    members = _members(fields) if balance else []
    while True:
        x = np.empty((batch, side, side, 3), np.float32)
        y = np.empty((batch, side, side, 4), np.float32)
        for k in range(batch):
            for _ in range(20):
                scale = float(np.exp(np.clip(rng.normal(0, zoom), -2 * zoom, 2 * zoom))) if zoom else 1.0
                if members and rng.random() < balance:
                    number, *place = rng.choice(members[rng.integers(len(members))])
                else:
                    number, place = rng.choice(len(fields), p=area / area.sum()), None
                chosen = fields[number]
                cut = min(round(side / scale), *chosen.labels.shape)
                room = np.array(chosen.labels.shape) - cut
                corner = rng.integers(0, room + 1) if place is None else place - rng.integers(0, cut, 2)
                row, column = np.clip(corner, 0, room)
                part = np.s_[row : row + cut, column : column + cut]
                image, labels, hv = chosen.image[part], chosen.labels[part], chosen.hv[part]
                if usable(image, labels, least=least):
                    break
            if cut != side:
                image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if cut > side else cv2.INTER_CUBIC)
                labels, hv = (cv2.resize(v, (side, side), interpolation=cv2.INTER_NEAREST) for v in (labels, hv))
            turn = rng.random(3) < 0.5
            image, labels, hv = dihedral(image, labels, hv, mirror_x=turn[0], mirror_y=turn[1], swap=turn[2])
            x[k] = jitter_stain(image, rng) if jitter else image
            y[k, ..., 0], y[k, ..., 1:3], y[k, ..., 3] = labels > 0, hv, chosen.classes[labels]
        yield x, y
