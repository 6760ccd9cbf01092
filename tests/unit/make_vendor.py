"""Tiny vendor folders written by hand, for the tests of the readers."""

import gzip
import json

import cv2
import h5py
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.io import mmwrite

GENES = ["ERBB2", "COX6C", "KRT5", "CD74", "ACTB", "MT-CO1"]


def tissue(height, width):
    """A dark disc on glass, asymmetric so that a swap of axes shows: uint8 RGB (y, x, 3)."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - 0.45 * width) / (0.30 * width)) ** 2 + ((y - 0.55 * height) / (0.38 * height)) ** 2 < 1
    image = np.full((height, width, 3), (238, 228, 236), np.uint8)
    image[inside] = (170, 90, 160)
    return image


def save(path, rgb, quality=95):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    assert cv2.imwrite(str(path), rgb[..., ::-1], options)


def counts(n_spots, n_genes=len(GENES), seed=0):
    values = np.random.default_rng(seed).poisson(3.0, (n_spots, n_genes))
    values[:, 0] += 1
    return values


def write_counts(path, names, values, genes=GENES, *, separator="\t", ends="\n", transposed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    if transposed:
        names, genes, values = list(genes), list(names), np.asarray(values).T
    lines = [separator.join(["", *genes])]
    lines += [separator.join([name, *map(str, row)]) for name, row in zip(names, values)]
    data = (ends.join(lines) + ends).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def inside_disc(array_xy, units=(32, 34)):
    x, y = (np.asarray(array_xy, float) - 1).T / np.array(units)[:, None]
    return ((x - 0.45) / 0.295) ** 2 + ((y - 0.55) / 0.375) ** 2 < 1


def st_grid():
    grid = np.stack(np.meshgrid(np.arange(2, 33), np.arange(2, 35)), -1).reshape(-1, 2)
    return grid[inside_disc(grid)]


def write_spacell(folder, name="CN51_C2_2", *, scale=20, **options):
    """SpaCell's folders: float coordinates, the picture cut to the array's frame. Returns array x, y."""
    array = st_grid() + 0.02
    names = [f"{x:g}x{y:g}" for x, y in array]
    write_counts(folder / "cm" / f"{name}_stdata_aligned_counts_IDs.txt", names, counts(len(names)), **options)
    save(folder / "image" / f"{'_'.join(name.split('_')[:2])}_HE.jpg", tissue(34 * scale, 32 * scale))
    return array


def write_her2st(folder, name="B2", *, scale=20, values=None, drop=0, **options):
    """her2st's folders: integer coordinates joined to a table of pixels. Returns the pixels, x, y."""
    array = st_grid()
    pixels = (array - 1) * float(scale)
    names = [f"{x}x{y}" for x, y in array]
    values = counts(len(names)) if values is None else values
    write_counts(folder / "ST-cnts" / f"{name}.tsv.gz", names[drop:], values[drop:], **options)
    table = pd.DataFrame({"x": array[:, 0], "y": array[:, 1], "new_x": array[:, 0], "new_y": array[:, 1],
                          "pixel_x": pixels[:, 0], "pixel_y": pixels[:, 1], "selected": 1})  # fmt: skip
    (folder / "ST-spotfiles").mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t", index=False)
    save(folder / "ST-imgs" / name[0] / name / f"57_{name}.jpg", tissue(34 * scale, 32 * scale))
    return pixels[drop:]


def write_2k(folder, name="MOB1"):
    """STUtility's staggered array with Ensembl ids and a table of gene names. Returns pixels of the selected spots."""
    array = np.array([(x, y) for x in range(1, 67) for y in range(1, 64) if (x + y) % 2 == 0])
    pixels = array * [10.0, 11.0] + 20
    on = inside_disc(array, (66, 63))
    ids = [f"ENSMUSG0000000000{i}.3" for i in range(6)]
    write_counts(folder / f"{name}.tsv", [f"{x}x{y}" for x, y in array], counts(len(array)), ids)
    pd.DataFrame({"x": array[:, 0], "y": array[:, 1], "new_x": array[:, 0], "new_y": array[:, 1],
                  "pixel_x": pixels[:, 0], "pixel_y": pixels[:, 1], "selected": on.astype(int)}).to_csv(
        folder / f"alignment_table_{name}.tsv", sep="\t", index=False)  # fmt: skip
    symbols = ["Gapdh", "Gapdh", "Actb", "Mbp", "Snap25"]  # the sixth id is unknown, the first two share a name
    pd.DataFrame({"gene_id": [name.split(".")[0] for name in ids[:5]], "gene_type": "x", "gene_name": symbols}).to_csv(
        folder / "mouse_genes.tsv.gz", sep="\t", index=False
    )
    save(folder / f"{name}.jpg", tissue(740, 720))
    return pixels[on]


def hexagons(rows=14, columns=28, mpp=2.0):
    """Positions of a small Visium array: one frame per column of Space Ranger's table."""
    array = np.array([(r, c) for r in range(rows) for c in range(columns) if (r + c) % 2 == 0])
    x, y = 60 + array[:, 1] * 50 / mpp, 40 + array[:, 0] * 86.6025 / mpp
    inside = inside_disc(np.c_[1 + x / 820 * 32, 1 + y / 660 * 34])
    barcodes = [f"{'ACGT'[i % 4]}{i:05d}-1" for i in range(len(array))]
    return pd.DataFrame({"barcode": barcodes, "in_tissue": inside.astype(int), "array_row": array[:, 0],
                         "array_col": array[:, 1], "pxl_row_in_fullres": y, "pxl_col_in_fullres": x})  # fmt: skip


def write_h5(path, values, barcodes, genes=GENES, ids=None):
    matrix = sparse.csc_matrix(np.asarray(values).T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array(matrix.shape)
        features = group.create_group("features")
        features["id"] = np.array(ids or [f"ENSG{i:011d}" for i in range(len(genes))], "S")
        features["name"] = np.array(genes, "S")
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), "S")
        features["genome"] = np.array(["GRCh38"] * len(genes), "S")


def write_mtx(folder, values, barcodes, genes=GENES, *, packed=True):
    folder.mkdir(parents=True)
    parts = {
        "features.tsv": "".join(f"ENSG{i:011d}\t{gene}\tGene Expression\n" for i, gene in enumerate(genes)),
        "barcodes.tsv": "".join(f"{barcode}\n" for barcode in barcodes),
    }
    mmwrite(str(folder / "matrix.mtx"), sparse.coo_matrix(np.asarray(values).T), field="integer")
    parts["matrix.mtx"] = (folder / "matrix.mtx").read_text()
    for name, text in parts.items():
        (folder / name).unlink(missing_ok=True)
        path = folder / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())


def write_visium(
    folder, name="P1_a", *, positions="tissue_positions.csv", header=True, matrix="h5",
    images=("full", "hires", "lowres"), values=None, genes=GENES, table=None,
):  # fmt: skip
    """A Space Ranger folder. Returns the table of positions (all spots of the array)."""
    table = hexagons() if table is None else table
    outs, picture = folder / name / "outs", tissue(660, 820)
    (outs / "spatial").mkdir(parents=True)
    scales = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1, "spot_diameter_fullres": 32.5,
              "fiducial_diameter_fullres": 52.5}  # fmt: skip
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps(scales))
    if "full" in images:
        save(folder / name / f"{name}.jpg", picture)
    for kind, scale in (("hires", 0.5), ("lowres", 0.1)):
        if kind in images:
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            save(outs / "spatial" / f"tissue_{kind}_image.png", small)
    if positions.endswith("parquet"):
        table.to_parquet(outs / "spatial" / positions)
    else:
        table.to_csv(outs / "spatial" / positions, index=False, header=header)
    barcodes = table["barcode"][table["in_tissue"] == 1].tolist()
    values = counts(len(barcodes), len(genes)) if values is None else values
    if matrix == "h5":
        write_h5(outs / "filtered_feature_bc_matrix.h5", values, barcodes, genes)
    else:
        write_mtx(outs / "filtered_feature_bc_matrix", values, barcodes, genes, packed=matrix == "mtx.gz")
    return table
