"""Caretaker, web page: the page itself, the script Streamlit runs (`make app`).

The sidebar is in ``app_controls``; what is computed in ``app_explain``; what is drawn in ``app_view``.
"""

from __future__ import annotations

import numpy as np
import streamlit as st
from PIL import Image

from helpers import app, app_controls, app_explain, app_view
from helpers.app_controls import plain

UNIT = {app.REGRESSION: "log1p of counts per 10,000", app.CLASSES: "probability of high"}


def show_answers(tile, mpp, labels, said, strange, measured):
    """Show the tile with its nuclei, and what the models say beside the training spots."""
    left, right = st.columns([2, 3], gap="medium")
    with left:
        plain = st.toggle("Hide the outlines", key="plain")
        st.image(app_view.tile(tile, mpp=mpp, labels=None if plain else labels), width="stretch")
        st.caption(f"{int(labels.max())} nuclei on {len(tile) * mpp:.0f} x {len(tile) * mpp:.0f} um")
    with right:
        if said["mean"].notna().any():
            table = said.assign(measured=[measured.get(gene, np.nan) for gene in said["gene"]])
            st.altair_chart(app_view.chart(table), width="stretch")
            known, seen = table["low"].notna().any(), table["measured"].notna().any()
            st.caption(
                "Blue: prediction; thick bar: how far the members differ (epistemic sd); thin bar: total sd, with the "
                "noise of counting."
                + " Grey: 5 to 95 % of the training spots, a tick at their median." * bool(known)
                + " Orange: measured in this spot." * bool(seen)
            )
        columns = {"mean": "predicted", "aleatoric_sd": "aleatoric sd", "epistemic_sd": "epistemic sd",
                   "rank": "rank", "probability": "P(high)"}  # fmt: skip
        shown = said.set_index("gene")[list(columns)].dropna(axis=1, how="all").rename(columns=columns)
        percent = [name for name in (columns["rank"], columns["probability"]) if name in shown]
        st.dataframe(shown.style.format("{:.2f}").format("{:.0%}", subset=percent), width="stretch")
        notes = ["rank: share of the training spots below the prediction"] * ("rank" in shown)
        if strange is not None and strange["verdict"] == "usual":
            notes.append(f"the tile resembles the training tiles (distance {strange['distance']:.2f}, usual up to "
                         f"{strange['limits'][0]:.2f})")  # fmt: skip
        st.caption("; ".join(notes).capitalize() + "." if notes else "")


def show_warnings(said, strange, labels):
    """Say what makes the answers doubtful."""
    if strange is None:
        st.info("These models came without a description of their training tiles: the page cannot tell whether this "
                "one resembles them.")  # fmt: skip
    elif strange["verdict"] != "usual":
        share = {"unusual": "95 %", "strange": "99 %"}[strange["verdict"]]
        show = st.error if strange["verdict"] == "strange" else st.warning
        low, high = strange["limits"]
        show(f"**Out of distribution.** This tile lies farther from the training tiles than {share} of tiles of "
             f"sections left out (distance {strange['distance']:.2f}; 95 % below {low:.2f}, 99 % below {high:.2f}). "
             "Another stain, scale or organ? Do not trust the numbers below.")  # fmt: skip
    doubtful = said.loc[said["doubt"].isin(["unusual", "strange"]), "gene"]
    if len(doubtful):
        st.warning(f"The members disagree on {', '.join(doubtful)} more than on 95 % of tiles they had not seen.")
    if not labels.any():
        st.warning("No nucleus found. Lower the threshold or the smallest area, or check the microns per pixel.")


def panels_of(gene, tile, mpp, labels, scores, slope, opacity, truth):
    """Return [(title, picture, legend in HTML, note)] of one gene."""
    made = []
    for model in (app.REGRESSION, app.CLASSES):
        if (gene, model) in scores:
            series = scores[gene, model]
            limit = float(series.abs().max()) or 1.0
            made.append((f"LIME, {model}", app_view.scored(tile, labels, series, mpp=mpp, opacity=opacity, limit=limit),
                         app_view.legend(limit, UNIT[model]), f"Local fit r2 = {series.attrs['r2']:.2f}"))  # fmt: skip
    if slope is not None:
        picture = app_view.heated(tile, slope, mpp=mpp, opacity=opacity)
        legend = app_view.legend(1, "size of the gradient", diverging=False)
        made.append(("Saliency", picture, legend, "How strongly a pixel moves the prediction."))
    if truth is not None:
        rate = truth.rate(gene)
        picture = app_view.scored(tile, truth.labels, rate, mpp=mpp, opacity=opacity, limit=1.0, diverging=False)
        hits = app_explain.agreement(labels, scores, truth, gene)
        note = "The tissue was made so. "
        if hits:
            k, chance = next(iter(hits.values()))[2], next(iter(hits.values()))[1]
            found = ", ".join(f"{model} {hit:.0%}" for model, (hit, _, _) in hits.items())
            note += f"Of the {k} nuclei scored highest these express it: {found}; chance {chance:.0%}."
        made.append(("Truth", picture, app_view.legend(1, "expression of its cell type", diverging=False), note))
    return made


def show_downloads(tile, mpp, corner, labels, scores, pictures, options):
    """Offer the panels as one PNG, and the nuclei as GeoJSON and CSV; each is made when it is asked for."""

    def png():
        first = app_view.tile(tile, mpp=mpp, labels=labels)
        genes = list(dict.fromkeys(gene for gene, _, _ in pictures))
        rows = [[(gene, first), *((name, shown) for of, name, shown in pictures if of == gene)] for gene in genes]
        told = ", ".join(f"{name} {value}" for name, value in options)
        note = f"{int(labels.max())} nuclei; {told}. LIME: red raises, blue lowers the prediction. Not for diagnosis."
        panels = [panel for row in rows for panel in row]
        return app_view.figure_png(panels, columns=len(rows[0]), title="Which nuclei count", note=note)

    def measured():
        return app_explain.table(labels, tile, scores, mpp=mpp, origin=corner)

    def outlines():
        gene, model = next(iter(scores))
        return app_explain.geojson(labels, measured(), score=f"LIME {model} {gene}", origin=corner)

    def rows():
        return measured().to_csv()

    offers = (("Panels (PNG)", png, "nuclei.png", "image/png"),
              ("Nuclei (GeoJSON for QuPath)", outlines, "nuclei.geojson", "application/geo+json"),
              ("Nuclei (CSV)", rows, "nuclei.csv", "text/csv"))  # fmt: skip
    for column, (label, make, name, kind) in zip(st.columns(3), offers):
        column.download_button(label, make, name, kind, key=name, on_click="ignore", width="stretch")


def main():
    """Draw the page."""
    icon = Image.fromarray(app_controls.demo().tile[:64, :64])  # a symbol by name would be fetched from the network
    st.set_page_config(page_title="Which nuclei did it look at?", page_icon=icon, layout="wide")
    st.html("<style>.stMainBlockContainer {padding: 3rem 2rem}</style>")
    st.title("Which nuclei did it look at?")
    st.caption("Gene expression predicted from a tile of H&E, how sure the models are, and which nuclei they used. A "
               "teaching page on teaching models: not for diagnosis.")  # fmt: skip
    picture, mpp, is_demo = app_controls.choose_picture()
    place = st.sidebar.container()
    models, models_key = app_controls.choose_models()
    genes = list(models.genes)
    first = [gene for gene in ("COX6C", "CD3E") if gene in genes] or genes[:2]
    chosen = tuple(st.sidebar.multiselect("Genes", genes, first, max_selections=4, key=f"genes_{models_key[:40]}"))
    with place:
        tile, corner = app_controls.choose_field(picture, mpp, models.tile_um)
    options = app_controls.choose_nuclei()
    lime_options, opacity = app_controls.choose_explanation()
    if not chosen:
        st.info("Choose a gene on the left.")
        st.stop()
    tile_key = app_controls.key_of(tile)
    labels = app_controls.nuclei_of(tile_key, mpp, options, tile)
    said, strange = app_controls.said_of(tile_key, models_key, chosen, models, tile)
    truth = app_controls.demo_truth() if is_demo else None
    show_warnings(said, strange, labels)
    show_answers(tile, mpp, labels, said, strange, app_controls.demo().card["measured"] if is_demo else {})

    st.subheader("Which nuclei count")
    st.caption("LIME hides a random half of the nuclei, several hundred times, and asks what each one adds: red raises "
               "the prediction, blue lowers it. Near r2 = 0 the scores describe nothing.")  # fmt: skip
    labels_key = app_controls.key_of(labels)
    scores = app_controls.scores_of(tile_key, models_key, labels_key, chosen, lime_options, models, tile, labels)
    slopes = app_controls.slopes_of(tile_key, models_key, chosen, models, tile)
    pictures = []
    for gene in chosen:
        st.markdown(f"#### {plain(gene)}")
        found = panels_of(gene, tile, mpp, labels, scores, slopes.get(gene), opacity, truth)
        for column, (title, shown, legend, note) in zip(st.columns(len(found)), found):
            column.markdown(f"**{title}**")
            column.image(shown, width="stretch")
            column.html(legend)
            column.caption(note)
            pictures.append((gene, title, shown))
    st.session_state["result"] = {
        "tile": tile, "labels": labels, "said": said, "strange": strange, "scores": scores, "slopes": slopes,
        "pictures": pictures,
    }  # fmt: skip
    show_downloads(tile, mpp, corner, labels, scores, pictures, lime_options)


app_controls.tidy_path()
with app_controls.told():
    main()
