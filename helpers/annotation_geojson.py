"""Methods: QuPath's GeoJSON, read as shapely areas by class, and written for spots and outlines."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.messages import CourseError, note

UNCLASSIFIED = "Unclassified"


def read_geojson(path, *, units: str, mpp: float | None = None, classes=None) -> dict:
    """Read areas by class.

    Parameters
    ----------
    path
        A FeatureCollection, a list of features or one feature, as QuPath writes them.
    units
        ``"px"`` (full-resolution pixels, what QuPath writes) or ``"um"``. A file does not say which, so you must.
    mpp
        Microns per pixel; needed with ``"um"``.
    classes
        If given, the only class names allowed.

    Returns
    -------
    dict
        Class name -> shapely geometry in full-resolution pixels, all areas of the class merged; holes are kept.
        Areas without a class come under ``"Unclassified"``. Points and lines are left out, with a note.

    Raises
    ------
    CourseError
        Not GeoJSON, no area, an unknown class, or a unit without its pixel size. An outline that crosses itself is
        mended (``shapely.make_valid``), with a note.
    """
    import shapely
    from shapely.affinity import scale
    from shapely.geometry import shape

    if units not in ("px", "um") or (units == "um" and not (mpp and mpp > 0)):
        seen = f"units={units!r}, mpp={mpp}"
        raise CourseError(seen, "'px', or 'um' with microns per pixel", "say the unit", file=path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        features = content.get("features", [content]) if isinstance(content, dict) else content
        found = [(shape(item["geometry"]), _class_name(item)) for item in features]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as problem:
        seen = f"{type(problem).__name__}: {problem}"
        raise CourseError(seen, "GeoJSON features", "export again", file=path) from problem
    areas = {}
    for geometry, name in found:
        if not geometry.is_valid:
            note(f"{path}: an outline of class {name} crosses itself; mended")
            geometry = shapely.make_valid(geometry)
        parts = [part for part in getattr(geometry, "geoms", [geometry]) if part.geom_type.endswith("Polygon")]
        if not parts:
            note(f"{path}: a {geometry.geom_type} of class {name} is no area; left out")
            continue
        areas.setdefault(name, []).extend(parts)
    unknown = sorted(set(areas) - set(classes or areas))
    if unknown or not areas:
        seen = f"class {unknown[0]!r}" if unknown else "no area"
        expected = f"one of {', '.join(classes)}" if classes else "polygons"
        raise CourseError(seen, expected, "classify in QuPath", file=path)
    factor = 1.0 if units == "px" else 1.0 / mpp
    return {n: scale(shapely.union_all(parts), factor, factor, origin=(0, 0)) for n, parts in areas.items()}


def _class_name(item) -> str:
    properties = item.get("properties") or {}
    given = properties.get("classification") or {}
    name = given.get("name") or "/".join(given.get("names", [])) if isinstance(given, dict) else str(given)
    return name or UNCLASSIFIED


def write_geojson(path, geometries, names, *, colours=None, kind: str = "annotation") -> None:
    """Write shapely geometries (full-resolution pixels) with their class names as QuPath objects.

    Parameters
    ----------
    colours
        Class name -> (R, G, B).
    kind
        ``"annotation"`` or ``"detection"``.
    """
    from shapely import set_precision
    from shapely.geometry import mapping

    features = []
    for geometry, name in zip(geometries, names, strict=True):
        classification = {"name": str(name)}
        if colours and name in colours:
            classification["color"] = [int(value) for value in colours[name]]
        features.append({
            "type": "Feature", "geometry": mapping(set_precision(geometry, 0.01)),
            "properties": {"objectType": kind, "classification": classification},
        })  # fmt: skip
    text = json.dumps({"type": "FeatureCollection", "features": features})
    draft = Path(path).with_name(Path(path).name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def spots_to_geojson(path, xy_px, radius_px: float, names, *, colours=None) -> None:
    """Write spots as round detections with their cluster as class; x, y and radius in full-resolution pixels."""
    import shapely

    circles = shapely.buffer(shapely.points(xy_px), radius_px, quad_segs=4)
    write_geojson(path, circles, names, colours=colours, kind="detection")
