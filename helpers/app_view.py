"""Caretaker, web page: what is shown - pictures as arrays, one chart, and the figure one downloads.

Nothing here computes a result. Pictures are uint8 RGB arrays enlarged to the page's width with a scale bar in microns.
"""

from __future__ import annotations

import io

import cv2
import numpy as np

WIDTH_PX = 560
"""Side to which a panel is enlarged."""
ORANGE, BLUE, GREY = "#D55E00", "#0072B2", "#8a8a8a"


def enlarge(rgb, *, smooth: bool = True):
    """Return a picture (y, x, 3) enlarged, or shrunk, so that its longer side is ``WIDTH_PX``."""
    rgb = np.asarray(rgb)
    factor = WIDTH_PX / max(rgb.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in rgb.shape[1::-1])
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST
    return cv2.resize(rgb, size, interpolation=how)


def scale_bar(rgb, *, um_per_px: float, small: bool = False):
    """Return the picture with a bar of a round number of microns, about a quarter of its width, at the lower right.

    ``small``: the page will show the picture at a third of its size, so the letters are made larger.
    """
    size, line = (1.1, 2) if small else (0.5, 1)
    rgb = np.ascontiguousarray(rgb)
    rows, columns = rgb.shape[:2]
    wanted = columns * um_per_px / 4
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    right, bottom = columns - 14, rows - 14
    left = round(right - length / um_per_px)
    text = f"{length:g} um"
    (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, line)
    middle = min((left + right) // 2, columns - 8 - wide // 2)
    corner = (max(0, min(left, middle - wide // 2) - 6), bottom - high - 14)
    box = rgb[corner[1] : bottom + 8, corner[0] : right + 8]
    box[:] = (0.25 * box + 0.75 * 255).astype(np.uint8)
    cv2.rectangle(rgb, (left, bottom - 2 * line), (right, bottom + 2), (0, 0, 0), -1)
    start = (middle - wide // 2, bottom - 8)
    cv2.putText(rgb, text, start, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), line, cv2.LINE_AA)
    return rgb


def _large(labels):
    """Return a label image enlarged without mixing its labels."""
    return enlarge(np.asarray(labels, np.float32), smooth=False).astype(np.int32)


def edges(labels):
    """Return where the label image (y, x) changes, bool: the outline of every nucleus, one or two pixels wide."""
    labels = np.asarray(labels)
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def tile(rgb, *, mpp: float, labels=None):
    """Return the enlarged tile, with the outlines of its nuclei if labels (y, x) are given."""
    large = enlarge(rgb)
    if labels is not None:
        rim = cv2.dilate(edges(_large(labels)).astype(np.uint8), np.ones((2, 2), np.uint8)).astype(bool)
        large[rim] = (255, 225, 0)
    return scale_bar(large, um_per_px=mpp * max(rgb.shape[:2]) / WIDTH_PX)


def colours(values, *, diverging: bool):
    """Return colours uint8 (..., 3): -1 blue, 0 pale, 1 red; or, where not diverging, 0 dark to 1 bright (viridis)."""
    import matplotlib

    table = matplotlib.colormaps["RdYlBu_r" if diverging else "viridis"]
    position = (np.clip(values, -1, 1) + 1) / 2 if diverging else np.clip(values, 0, 1)
    return (np.asarray(table(position))[..., :3] * 255 + 0.5).astype(np.uint8)


def scored(rgb, labels, scores, *, mpp: float, opacity: float, limit: float, diverging: bool = True):
    """Return the enlarged tile with each nucleus painted by its score.

    Parameters
    ----------
    labels
        int (y, x), 0 = background, which is left as it is.
    scores
        Mapping label -> number; a nucleus without a score stays unpainted.
    opacity
        0 (not seen) to 1 (nothing beneath it is seen).
    limit
        The score painted full red; its negative is full blue.
    diverging
        False: 0 is dark and ``limit`` is bright.
    """
    large, marks = enlarge(rgb), _large(labels)
    table = np.full(int(max(marks.max(), 0)) + 1, np.nan)
    for label, score in scores.items():
        if 0 < label < len(table):
            table[label] = score
    value = table[marks] / (limit or 1.0)
    painted = np.isfinite(value)
    colour = colours(np.nan_to_num(value), diverging=diverging).astype(np.float32)
    mixed = (1 - opacity) * large + opacity * colour
    large = np.where(painted[..., None], mixed, large).astype(np.uint8)
    large[edges(marks) & (painted | edges(painted))] = (60, 60, 60)
    return scale_bar(large, um_per_px=mpp * max(rgb.shape[:2]) / WIDTH_PX, small=True)


def heated(rgb, heat, *, mpp: float, opacity: float):
    """Return the enlarged tile under a map of values >= 0 (y, x), its 99.5th percentile the brightest."""
    heat = np.asarray(heat, np.float32)
    top = float(np.quantile(heat, 0.995)) or 1.0
    large = enlarge(rgb)
    mixed = (1 - opacity) * large + opacity * colours(enlarge(heat) / top, diverging=False).astype(np.float32)
    return scale_bar(mixed.astype(np.uint8), um_per_px=mpp * max(rgb.shape[:2]) / WIDTH_PX, small=True)


def boxed(rgb, *, mpp: float, corner_px, side_px: int):
    """Return a section as a thumbnail with the chosen field framed; ``corner_px`` is x, y in pixels of ``rgb``."""
    large = enlarge(rgb)
    factor = WIDTH_PX / max(rgb.shape[:2])
    start = tuple(round(c * factor) for c in corner_px)
    stop = tuple(round((c + side_px) * factor) for c in corner_px)
    cv2.rectangle(large, start, stop, (255, 255, 255), 5)
    cv2.rectangle(large, start, stop, (0, 0, 0), 2)
    return scale_bar(large, um_per_px=mpp / factor)


def legend(limit: float, unit: str, *, diverging: bool = True) -> str:
    """Return a colour bar as HTML, from -limit to limit, or from low to high."""
    from html import escape

    stops = np.linspace(-1 if diverging else 0, 1, 11)
    bar = ", ".join(f"rgb({r},{g},{b})" for r, g, b in colours(stops, diverging=diverging))
    low, high = (f"-{limit:.2g}", f"+{limit:.2g}") if diverging else ("low", "high")
    return (
        f'<div style="font-size:.75rem;line-height:1.3"><div style="height:.55rem;border-radius:.2rem;'
        f'background:linear-gradient(90deg,{bar})"></div><div style="display:flex;justify-content:space-between">'
        f"<span>{low}</span><span>{high}</span></div><div style='opacity:.7'>{escape(unit)}</div></div>"
    )


def chart(table):
    """Return an Altair chart of predictions against the training spots, one row a gene.

    Parameters
    ----------
    table
        Data frame with ``gene``, ``mean``, ``epistemic_sd``, ``total_sd`` and, where known, ``low``, ``median``,
        ``high`` (training spots) and ``measured``; the unit is log1p of counts per 10,000.
    """
    import altair as alt

    data = table.assign(
        inner_low=table["mean"] - table["epistemic_sd"], inner_high=table["mean"] + table["epistemic_sd"],
        outer_low=(table["mean"] - table["total_sd"]).clip(lower=0), outer_high=table["mean"] + table["total_sd"],
    )  # fmt: skip
    row = alt.Y("gene:N", sort=list(table["gene"]), title=None, axis=alt.Axis(labelFontSize=13, labelFontWeight="bold"))
    base = alt.Chart(data).encode(y=row)
    unit = "log1p of counts per 10,000"
    layers = []
    if data["low"].notna().any():
        layers += [
            base.mark_bar(size=26, color="#dddddd").encode(
                x=alt.X("low:Q", title=unit), x2="high:Q", tooltip=["gene", "low", "high"]
            ),
            base.mark_tick(size=26, thickness=2, color=GREY).encode(x="median:Q", tooltip=["gene", "median"]),
        ]
    tips = [alt.Tooltip(c, format=".2f") for c in ("mean", "epistemic_sd", "total_sd")]
    layers += [
        base.mark_bar(size=2, color=BLUE).encode(x=alt.X("outer_low:Q", title=unit), x2="outer_high:Q"),
        base.mark_bar(size=9, color=BLUE).encode(x="inner_low:Q", x2="inner_high:Q"),
        base.mark_point(size=80, color=BLUE, filled=True, opacity=1).encode(x="mean:Q", tooltip=["gene", *tips]),
    ]
    if data["measured"].notna().any():
        layers.append(
            base.mark_point(size=90, color=ORANGE, shape="diamond", filled=True, opacity=1).encode(
                x="measured:Q", tooltip=["gene", "measured"]
            )
        )
    return alt.layer(*layers).properties(height=46 * len(table) + 60)


def figure_png(panels, *, columns: int, title: str, note: str) -> bytes:
    """Return one PNG of all panels: ``panels`` is a list of (title, uint8 RGB picture), row by row."""
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.35 * rows + 0.7), dpi=150, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, picture) in zip(axes, panels):
        axis.imshow(picture)
        axis.set_title(name, fontsize=9, loc="left", fontweight="bold")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.supxlabel(note, fontsize=7, x=0.01, ha="left")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    return stream.getvalue()
