"""Against what is known of the virtual tissue: sketches are put where they were drawn, and genes find its regions.

The sections are those the notebooks use; they are made once and kept.
"""

import functools

import numpy as np
import pytest

from helpers import annotation, counts, grade_pathologist, spacell
from helpers import section as sec
from helpers.messages import CourseError
from helpers.runner_data import Data

SECTION = "P2_a"


@functools.lru_cache(maxsize=None)
def opened(data, name):
    run = Data({"DATA": data, "SEED": 0})
    section = run.load(name)
    return section, run.truth(name), sec.thumbnail(section, 1600)


def put_on(drawing, thumbnail):
    small, scale = thumbnail
    line = annotation.line_mask(drawing.picture, grade_pathologist.PEN_RANGE)
    found = annotation.register(drawing.picture, small, slide_factor=1 / scale, hide=line)
    return found, found.polygons(annotation.outline(line, is_open=drawing.is_open))


@pytest.mark.parametrize(("is_open", "angle"), [(False, 0), (True, -9), (True, 10)])
def test_a_sketch_lands_where_it_was_drawn(is_open, angle):
    section, truth, thumbnail = opened("virtual", SECTION)
    drawing = grade_pathologist.draw(section, truth, is_open=is_open, angle_deg=angle)
    errors = grade_pathologist.errors(drawing, *put_on(drawing, thumbnail))
    assert errors["scale"] < 0.2 and errors["place"] < 0.3 and errors["angle"] < 0.1 and errors["overlap"] > 0.95


def test_the_errors_would_be_seen():
    section, truth, thumbnail = opened("virtual", SECTION)
    drawing = grade_pathologist.draw(section, truth)
    from dataclasses import replace

    found, area = put_on(drawing, thumbnail)
    off = replace(found, scale=found.scale * 1.05, x=found.x + 5 * drawing.scale)
    from shapely.affinity import translate

    errors = grade_pathologist.errors(drawing, off, translate(area, 300))
    assert errors["scale"] > 2 and errors["place"] > 3 and errors["overlap"] < 0.9


def test_a_sketch_of_another_section_is_refused():
    section, truth, _ = opened("virtual", SECTION)
    drawing = grade_pathologist.draw(section, truth)
    with pytest.raises(CourseError, match="correlation"):
        put_on(drawing, opened("virtual", "P3_a")[2])


@pytest.mark.parametrize(("data", "low", "high"), [("virtual", 0.15, 1.0), ("virtual_null", -0.1, 0.1)])
def test_genes_find_regions_only_where_they_know_them(data, low, high):
    section, truth, _ = opened(data, SECTION)
    table = counts.normalise(counts.filter_counts(sec.counts(section)))
    genes = table[:, counts.most_variable(table, 2048)].X.toarray()
    fits = spacell.fit(genes, genes[:, :2], kinds=["gene"], losses=spacell.LOSSES)
    regions = truth.spots.loc[table.obs_names, "domain"]
    ari = [annotation.adjusted_rand(regions, spacell.cluster(fit.code, 3)) for fit in fits]
    assert low <= np.mean(ari) <= high
    assert min(fit.learned for fit in fits) > 0.1
