"""Agreement in space, each measure against an independent library."""

import numpy as np
import pytest
from scipy import ndimage, sparse, stats

from helpers import spatial
from helpers.messages import CourseError

N_GENES = 12


def hexagons(rows=18, columns=17, jitter=0.0):
    r, c = np.mgrid[:rows, :columns]
    xy = np.c_[(c + 0.5 * (r % 2)).ravel(), (r * np.sqrt(3) / 2).ravel()] * 137.0
    return xy + np.random.default_rng(5).normal(0, 137 * jitter, xy.shape)


def squares(rows=15, columns=16):
    r, c = np.mgrid[:rows, :columns]
    return np.c_[c.ravel(), r.ravel()].astype(float) * 290 + 40


def patterns(xy, seed=0):
    rng = np.random.default_rng(seed)
    wave = np.sin(xy[:, :1] / 400 + np.arange(N_GENES)) + np.cos(xy[:, 1:] / 700)
    truth = rng.poisson(np.exp(0.4 * wave + rng.normal(0, 0.3, wave.shape))).astype(float)
    return truth, (wave + rng.normal(0, 1.0, wave.shape)).astype(np.float32)


def libpysal_weights(graph):
    from libpysal.weights import W

    graph = sparse.csr_array(graph)
    return W({i: graph.indices[graph.indptr[i] : graph.indptr[i + 1]].tolist() for i in range(graph.shape[0])},
             silence_warnings=True)  # fmt: skip


# ---------------------------------------------------------------- correlations
def test_pearson_and_spearman_equal_scipy_ties_included():
    truth, prediction = patterns(hexagons())
    prediction = np.round(prediction, 1)
    assert len(np.unique(truth[:, 0])) < 10  # many ties
    ours = spatial.pearson(truth, prediction), spatial.spearman(truth, prediction)
    for g in range(N_GENES):
        assert ours[0][g] == pytest.approx(stats.pearsonr(truth[:, g], prediction[:, g])[0], abs=1e-10)
        assert ours[1][g] == pytest.approx(stats.spearmanr(truth[:, g], prediction[:, g])[0], abs=1e-10)
    assert np.allclose(spatial.pearson(sparse.csr_matrix(truth), prediction), ours[0], atol=1e-12)


def test_constant_genes_have_no_correlation_even_when_rounded():
    truth, prediction = patterns(hexagons())
    truth[:, 2] = 3
    prediction[:, 5] = np.float32(0.1) * (1 + 1e-7 * np.random.default_rng(0).integers(0, 2, len(truth)))
    for function in (spatial.pearson, spatial.spearman):
        found = function(truth, prediction)
        assert np.isnan(found[[2, 5]]).all() and np.isfinite(np.delete(found, [2, 5])).all()


def test_partial_equals_correlation_of_residuals_and_removes_depth():
    xy = hexagons()
    truth, prediction = patterns(xy)
    depth = np.random.default_rng(1).normal(8, 0.5, len(xy))
    deep = truth + depth[:, None]
    fake = np.tile(depth[:, None], N_GENES) + np.random.default_rng(2).normal(0, 0.1, truth.shape)
    design = np.c_[np.ones(len(xy)), depth]

    def residual(values):
        return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]

    left = residual(deep), residual(prediction.astype(float))
    expected = [stats.pearsonr(left[0][:, g], left[1][:, g])[0] for g in range(N_GENES)]
    assert np.allclose(spatial.partial(deep, prediction, depth), expected, atol=1e-9)
    assert np.median(spatial.pearson(deep, fake)) > 0.3  # depth alone looks like skill
    assert abs(np.median(spatial.partial(deep, fake, depth))) < 0.1  # and is none
    assert np.isnan(spatial.partial(deep, np.tile(depth[:, None], N_GENES), depth)).all()
    doubled = spatial.partial(deep, prediction, np.c_[depth, 2 * depth])
    assert np.allclose(doubled, expected, atol=1e-9)
    assert np.allclose(spatial.partial(deep, prediction, np.ones(len(xy))), spatial.pearson(deep, prediction))


def test_correlation_over_genes_flatters_the_mean_and_is_kept_apart():
    rng = np.random.default_rng(0)
    level = rng.gamma(1, 3, 40)
    truth = rng.poisson(level, (60, 40)).astype(float)
    lazy = np.tile(level, (60, 1))  # the same answer everywhere
    ours = spatial.per_spot(truth, lazy)
    assert ours.shape == (60,) and ours.mean() > 0.8
    assert ours[7] == pytest.approx(stats.pearsonr(truth[7], lazy[7])[0], abs=1e-10)
    assert np.isnan(spatial.pearson(truth, lazy)).all()
    assert np.isnan(spatial.per_spot(truth, lazy, remove_means=True)).all()


# ---------------------------------------------------------------- neighbours
@pytest.mark.parametrize("xy, ring", [(hexagons(), 6), (squares(), 8), (hexagons(jitter=0.03), 6)])
def test_inner_spots_have_the_neighbours_of_their_array(xy, ring):
    graph = spatial.neighbours(xy)
    inside = ((xy > xy.min(0) + 300) & (xy < xy.max(0) - 300)).all(1)
    assert (graph.sum(1)[inside] == ring).all()
    assert (graph != graph.T).nnz == 0 and graph.diagonal().sum() == 0 and graph.max() == 1
    turned = xy @ [[0.8, 0.6], [-0.6, 0.8]]
    assert (spatial.neighbours(turned) != graph).nnz == 0


def test_spacing_survives_jitter_and_missing_spots():
    xy = squares(30, 30) + np.random.default_rng(0).normal(0, 290 * 0.05, (900, 2))
    assert spatial.spacing(xy) == pytest.approx(290, rel=0.02)
    half = squares(30, 30)[np.random.default_rng(1).random(900) < 0.5]
    assert spatial.spacing(half) == pytest.approx(290)


def test_square_neighbours_equal_libpysal_queen():
    from libpysal.weights import lat2W

    ours = spatial.neighbours(squares(6, 7))
    assert np.array_equal(ours.toarray(), lat2W(6, 7, rook=False).full()[0])


def test_other_kinds_of_neighbours():
    from libpysal.weights import KNN

    xy = np.random.default_rng(3).random((80, 2)) * 500
    assert np.array_equal(spatial.neighbours(xy, kind="knn", k=5).toarray(), KNN.from_array(xy, k=5).full()[0])
    twice = np.r_[xy, xy[:3]]  # doubled cells are each other's neighbour, not their own
    graph = spatial.neighbours(twice, kind="knn", k=2)
    assert graph.diagonal().sum() == 0 and (graph.sum(1) == 2).all()
    cells = spatial.neighbours(xy, kind="delaunay")
    assert 4 < cells.sum() / 80 < 6.5
    far = np.r_[xy, xy + 1e5]
    assert spatial.neighbours(far, kind="delaunay")[:80, 80:].nnz == 0  # no bridge


@pytest.mark.parametrize("xy, why", [
    (np.zeros((5, 2)), "position of another"), (np.ones((1, 2)), "at least 2"), (np.full((9, 2), np.nan), "finite"),
])  # fmt: skip
def test_bad_positions_are_refused(xy, why):
    with pytest.raises(CourseError, match=why):
        spatial.neighbours(xy)


# ---------------------------------------------------------------- Moran
@pytest.fixture(scope="module")
def islands():
    """Two parts that do not touch, one lonely spot."""
    xy = np.r_[hexagons(), hexagons(9, 8) + 9000, [[20000.0, 0.0]]]
    truth, prediction = patterns(xy)
    graph = spatial.neighbours(xy)
    assert graph.sum(1)[-1] == 0 and (graph.sum(1)[:-1] > 0).all()
    return truth, prediction, graph


def test_moran_equals_esda(islands):
    from esda.moran import Moran

    truth, _, graph = islands
    ours, p = spatial.moran(truth, graph, p="analytic")
    weights = libpysal_weights(graph[:-1][:, :-1])  # the lonely spot is left out
    for g in range(N_GENES):
        theirs = Moran(truth[:-1, g], weights, permutations=0)
        assert ours[g] == pytest.approx(theirs.I, abs=1e-10)
        assert p[g] == pytest.approx(theirs.p_rand, abs=1e-8)
    assert ours.max() > 0.1


def test_bivariate_moran_equals_esda_with_the_truth_lagged(islands):
    from esda.moran import Moran_BV

    truth, prediction, _ = (part[:-1] for part in islands)
    lopsided = islands[2][:-1][:, :-1].tolil()
    lopsided[0, 1] = 0  # so that the order matters
    lopsided = sparse.csr_array(lopsided)
    lopsided.eliminate_zeros()
    ours = spatial.moran_bv(prediction, truth, lopsided)
    weights = libpysal_weights(lopsided)
    theirs = [Moran_BV(prediction[:, g].astype(float), truth[:, g], weights, permutations=0).I for g in range(N_GENES)]
    assert np.allclose(ours, theirs, atol=1e-10)
    assert not np.allclose(spatial.moran_bv(truth, prediction, lopsided), theirs, atol=1e-6)
    local = spatial.local_moran_bv(prediction, truth, lopsided)
    assert np.allclose(local.sum(0) / (len(truth) - 1), ours)


def test_local_bivariate_moran_equals_esda(islands):
    from esda.moran import Moran_Local_BV

    truth, prediction, graph = islands
    local = spatial.local_moran_bv(prediction, truth, graph)
    assert np.isnan(local[-1]).all()
    theirs = Moran_Local_BV(prediction[:-1, 3].astype(float), truth[:-1, 3],
                            libpysal_weights(graph[:-1][:, :-1]), permutations=0).Is  # fmt: skip
    n = len(theirs)
    factor = local[:-1, 3] @ theirs / (theirs @ theirs)
    assert np.allclose(local[:-1, 3], factor * theirs) and factor == pytest.approx(1, abs=2 / n)


def test_permutations_find_the_pattern_and_not_the_noise():
    xy = hexagons()
    truth, prediction = patterns(xy)
    noise = np.random.default_rng(9).normal(size=(len(xy), 200))
    graph = spatial.neighbours(xy)
    _, p = spatial.moran(truth, graph, p="permutation", permutations=99)
    assert (p <= 0.05).mean() > 0.8
    _, null = spatial.moran(noise, graph, p="permutation", permutations=99)
    assert 0.01 <= (null <= 0.05).mean() <= 0.1 and stats.kstest(null, "uniform").pvalue > 1e-3
    analytic = spatial.moran(noise, graph, p="analytic")[1]
    assert stats.kstest(analytic, "uniform").pvalue > 1e-3
    _, both = spatial.moran_bv(prediction, truth, graph, p="permutation", permutations=99, seed=4)
    assert (both <= 0.05).mean() > 0.8
    assert np.array_equal(both, spatial.moran_bv(prediction, truth, graph, p="permutation", permutations=99, seed=4)[1])


def test_moran_of_flat_genes_and_of_scattered_spots(islands):
    truth, prediction, graph = islands
    truth = truth.copy()
    truth[:, 1] = 7
    assert np.isnan(spatial.moran(truth, graph)[1]) and np.isnan(spatial.moran_bv(prediction, truth, graph)[1])
    assert np.isnan(spatial.moran(truth, graph, p="permutation", permutations=3)[1][1])
    with pytest.raises(CourseError, match="with a neighbour"):
        spatial.moran(truth, sparse.csr_array(graph.shape))
    truth[0, 3] = np.nan
    with pytest.raises(CourseError, match="not finite.*column 3"):
        spatial.moran(truth, graph)


# ---------------------------------------------------------------- high regions
@pytest.mark.parametrize("level", ["mean", 0.5])
def test_iou_equals_filtering_the_picture_of_a_square_array(level):
    from sklearn.metrics import jaccard_score

    rows, columns = 15, 16
    everywhere = squares(rows, columns)
    tissue = np.hypot(*(everywhere - everywhere.mean(0)).T) < 2100
    xy = everywhere[tissue]
    truth, prediction = patterns(xy)
    ours, chance = spatial.iou(truth, prediction, xy, level=level)
    glass = ndimage.gaussian_filter(tissue.reshape(rows, columns).astype(float), 1, mode="constant")

    def region(values):
        picture = np.zeros(rows * columns)
        picture[tissue] = stats.zscore(values) > 0
        picture = ndimage.gaussian_filter(picture.reshape(rows, columns), 1, mode="constant") / np.maximum(glass, 1e-9)
        blurred = picture.ravel()[tissue]
        return blurred > (blurred.mean() if level == "mean" else level)

    for g in range(N_GENES):
        a, b = region(truth[:, g]), region(prediction[:, g].astype(float))
        assert ours[g] == pytest.approx(jaccard_score(a, b, pos_label=True), abs=1e-12)
        p, q = a.mean(), b.mean()
        assert chance[g] == pytest.approx(p * q / (p + q - p * q))
    blurred = spatial.kernel(xy) @ truth
    picture = np.zeros((rows * columns, N_GENES))
    picture[tissue] = truth
    for g in range(N_GENES):
        full = ndimage.gaussian_filter(picture[:, g].reshape(rows, columns), 1, mode="constant")
        assert np.allclose(blurred[:, g], (full / np.maximum(glass, 1e-9)).ravel()[tissue], atol=1e-6)


@pytest.mark.parametrize("xy", [hexagons(), hexagons(jitter=0.05), squares() @ [[0.9, 0.1], [-0.1, 0.9]]])
def test_iou_is_of_the_high_class_on_any_array(xy):
    left = xy[:, 0] < np.quantile(xy[:, 0], 0.3)
    middle = xy[:, 0] < np.quantile(xy[:, 0], 0.6)
    scatter = np.random.default_rng(0).random(len(xy)) < 0.02
    truth = np.c_[left, left, ~left, scatter].astype(float)
    prediction = np.c_[left, middle, left, scatter].astype(float)
    overlap, chance = spatial.iou(truth, 5 * prediction - 100, xy, level=0.5)
    assert overlap[0] == 1 and overlap[1] == pytest.approx(0.5, abs=0.06)  # of the low class it would be 4/7
    assert overlap[2] == pytest.approx(0, abs=0.01) and np.isnan(overlap[3])
    assert np.isnan(chance[3])
    by_mean = spatial.iou(truth, prediction, xy)[0]
    assert by_mean[0] == 1 and 0.4 < by_mean[1] < 0.8 and by_mean[2] < 0.2 and by_mean[3] == 1
    assert spatial.high_regions(truth, xy)[:, 3].sum() > spatial.high_regions(truth, xy, level=0.5)[:, 3].sum() == 0
    null, expected = spatial.iou(np.random.default_rng(1).normal(size=(len(xy), 300)),
                                 np.random.default_rng(2).normal(size=(len(xy), 300)), xy)  # fmt: skip
    assert abs(np.nanmean(null - expected)) < 0.02


def test_regions_cut_at_their_mean_hardly_tell_abundance():
    xy = hexagons(30, 30)
    rate = np.geomspace(0.05, 5, 200)
    rng = np.random.default_rng(0)
    truth, prediction = rng.poisson(rate, (900, 200)), rng.poisson(rate, (900, 200))  # nothing in common but the level
    by_mean, by_half = (np.nan_to_num(spatial.iou(truth, prediction, xy, level=at)[0]) for at in ("mean", 0.5))
    assert by_mean.std() < 0.06 and by_half.std() > 3 * by_mean.std()
    with pytest.raises(CourseError, match="level='otsu'"):
        spatial.iou(truth, prediction, xy, level="otsu")


def test_high_is_above_the_mean_and_a_flat_gene_is_low():
    values = np.c_[np.arange(10.0), np.full(10, 0.1), np.r_[np.zeros(9), 1]]
    assert spatial.high(values).sum(0).tolist() == [5, 0, 1]


def test_auc_equals_sklearn_with_ties_and_refuses_swapped_arguments():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    labels, score = rng.random((200, 9)) < 0.3, np.round(rng.normal(size=(200, 9)), 1)
    labels[:, 4] = True
    ours = spatial.auc(labels, score)
    assert np.isnan(ours[4])
    for g in (0, 1, 2, 3, 5, 6, 7, 8):
        assert ours[g] == pytest.approx(roc_auc_score(labels[:, g], score[:, g]), abs=1e-12)
    assert spatial.auc(labels[:, 0], score[:, 0]) == pytest.approx(ours[0])
    with pytest.raises(CourseError, match="order of the arguments"):
        spatial.auc(score, labels)


# ---------------------------------------------------------------- tables
def test_scores_hold_each_measure_and_punish_a_silent_prediction():
    xy = hexagons()
    truth, prediction = patterns(xy)
    truth[:, 1], prediction[:, 2] = 4, 0.5
    library = np.random.default_rng(0).integers(500, 5000, len(xy))
    names = [f"G{i}" for i in range(N_GENES)]
    table = spatial.scores(truth, prediction, xy, library=library, genes=names, permutations=19)
    assert list(table.index) == names and table.index.name == "gene"
    graph = spatial.neighbours(xy)
    assert table.loc["G0", "partial"] == pytest.approx(spatial.partial(truth, prediction, np.log(library))[0])
    assert table.loc["G0", "moran_bv"] == pytest.approx(spatial.moran_bv(prediction, truth, graph)[0])
    assert table.loc["G0", "iou"] == pytest.approx(spatial.iou(truth, prediction, xy)[0][0])
    assert table.loc["G1"].drop("moran_prediction").isna().all()
    silent = table.loc["G2"]
    assert (silent[["pearson", "spearman", "partial", "moran_bv", "iou"]] == 0).all() and silent["p_moran_bv"] == 1
    assert np.isnan(silent["moran_prediction"]) and silent["moran_truth"] > 0


def test_sections_are_scored_apart_then_summarised():
    xy = hexagons()
    truth, prediction = patterns(xy)
    shift = 50.0  # a batch effect both sides share: pooled, it looks like skill
    noise = np.random.default_rng(3).normal(size=truth.shape)
    both = np.r_[truth, truth + shift], np.r_[noise, noise[::-1] + shift]
    assert spatial.pearson(*both).min() > 0.9
    table = spatial.scores_by_section(*both, np.r_[xy, xy], ["A"] * len(xy) + ["B"] * len(xy))
    assert list(table["section"].unique()) == ["A", "B"] and len(table) == 2 * N_GENES
    assert table["pearson"].abs().max() < 0.3
    alone = spatial.scores(truth, noise, xy)
    assert np.allclose(table[table["section"] == "A"]["moran_bv"], alone["moran_bv"])
    short = spatial.summary(table, top=3)
    assert list(short.index) == ["A", "B", "mean"]
    assert short.loc["A", "pearson"] == pytest.approx(alone["pearson"].median())
    assert short.loc["A", "pearson_top"] == pytest.approx(alone["pearson"].nlargest(3).mean())
    assert short.loc["mean", "iou"] == pytest.approx(short.loc[["A", "B"], "iou"].mean())


@pytest.mark.parametrize("change, why", [
    ({"prediction": np.ones((3, 2))}, "same spots and genes"), ({"library": np.zeros(306)}, "positive total"),
    ({"genes": ["A"]}, "one name a gene"), ({"xy": np.ones((4, 2))}, "one position each"),
])  # fmt: skip
def test_bad_tables_are_refused(change, why):
    xy = hexagons()
    truth, prediction = patterns(xy)
    given = {"truth": truth, "prediction": prediction, "xy": xy, **change}
    with pytest.raises(CourseError, match=why):
        spatial.scores(**given)


def test_leiden_finds_planted_groups_and_repeats():
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], [120, 90, 60])
    values = rng.normal(size=(270, 30)) + 2.5 * rng.normal(size=(3, 30))[group]
    found = spatial.leiden(values, seed=1, resolution=0.5)
    assert adjusted_rand_score(group, found) > 0.95
    assert np.array_equal(found, spatial.leiden(values, seed=1, resolution=0.5))
    assert (np.diff(np.bincount(found)) <= 0).all()
    with pytest.raises(CourseError, match="10 spots"):
        spatial.leiden(values[:5])


def test_medians_are_those_of_the_sections_scored_apart():
    draw = np.random.default_rng(0)
    truth, guess = draw.normal(size=(60, 7)), draw.normal(size=(60, 7))
    truth[:30] += guess[:30]
    names, library = np.repeat(["a", "b"], 30), draw.uniform(100, 1000, 60)
    found = spatial.medians(truth, guess, names, library=library)
    parts = [spatial.pearson(truth[part], guess[part]) for part in (slice(0, 30), slice(30, 60))]
    assert found["pearson"] == pytest.approx(np.median(parts))
    assert found["pearson"] != pytest.approx(np.median(spatial.pearson(truth, guess)))
    assert abs(found["partial"] - found["pearson"]) < 0.3
