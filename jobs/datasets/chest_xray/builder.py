"""The real dataset: Kermany et al. 2018, or any folder laid out like it."""

from __future__ import annotations

from jobs.datasets.films import FilmBuilder


class ChestXray(FilmBuilder):
    """Writes real chest X-rays."""

    DESCRIPTION = "Frontal chest X-rays: normal, bacterial and viral pneumonia."
    HOMEPAGE = "https://data.mendeley.com/datasets/rscbjbr9sj"
    LICENSE = "CC BY 4.0"
    CITATION = (
        "Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for "
        "Classification, Mendeley Data, doi 10.17632/rscbjbr9sj; Cell 172 (2018) 1122, "
        "doi 10.1016/j.cell.2018.02.010"
    )
