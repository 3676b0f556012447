"""The papers' numbers: equal to a second typing, and consistent but for named exceptions."""

import pytest
from pydantic import ValidationError

from diffaug_datasets.core.files import load_yaml
from diffaug_datasets.evaluate.papers import PaperTable, all_published, paper_tables, published

# Typed from the papers' tables a second time, a line per row; 2nd-hand ones from what other texts say of them.
TYPED = {
    "diffii_1_rn50": """
    Original 54.52 36.63 86.98 40.10 54.56 70.26 54.11 90.41 69.64 71.11
    Real-Filter 55.03 30.40 87.66 57.50 57.65 67.36 47.21 90.14 69.64 70.66
    Real-Guidance 54.67 36.27 86.22 42.45 54.90 69.81 54.77 90.06 70.97 71.40
    Real-Mix 51.00 22.53 88.63 52.06 53.56 64.65 44.16 89.40 75.72 68.48
    DA-Fusion 59.40 34.98 88.64 51.90 58.73 72.05 51.14 90.47 77.61 72.82
    Diff-AUG 61.14 39.48 89.24 62.28 63.04 72.02 55.43 90.28 81.65 74.85
    Diff-Mix 56.18 32.61 88.77 56.39 58.49 70.16 52.33 90.79 78.68 72.99
    Diff-II 62.22 42.15 89.84 64.24 64.61 72.66 57.43 91.01 82.02 75.78
    """,
    "diffii_1_vitb": """
    Original 73.00 32.85 90.71 59.72 64.07 83.52 51.59 92.92 81.01 77.26
    Real-Filter 73.66 31.44 90.85 72.51 67.12 82.19 46.43 93.14 84.69 76.61
    Real-Guidance 74.74 35.10 91.23 62.34 65.85 83.24 53.15 93.22 81.97 77.90
    Real-Mix 72.25 32.91 90.92 70.55 66.66 80.95 47.01 93.16 83.78 76.23
    DA-Fusion 76.24 34.20 93.03 71.07 68.64 83.97 51.68 93.68 85.00 78.58
    Diff-AUG 77.24 40.08 92.27 76.48 71.52 84.10 56.24 93.93 87.59 80.47
    Diff-Mix 74.49 36.48 92.29 73.01 69.07 81.98 53.92 93.98 85.42 78.83
    Diff-II 79.22 40.23 93.79 77.10 72.59 84.89 56.32 94.25 87.81 80.82
    """,
    "diffii_2": """
    CE 33.65 44.82 58.13 45.53 80.43 90.87 95.07 88.79
    CMO 32.94 44.08 57.62 44.88 83.95 91.43 95.19 90.19
    CMO-DRW 32.57 46.43 59.25 46.08 84.07 92.06 95.92 90.68
    Real-Gen 45.86 53.43 61.42 53.57 83.56 91.84 95.22 90.21
    Real-Mix 47.75 55.67 62.27 55.23 85.19 92.96 96.04 91.40
    Diff-Mix 50.35 58.19 64.48 57.67 89.46 93.86 96.63 93.32
    Diff-II 51.21 62.31 70.28 61.27 89.54 94.39 97.35 93.76
    """,
    "diffii_3": """
    Original 38.55 32.15 37.90 30.20 34.70
    Real-Filter 38.87 34.72 38.25 31.64 35.87
    Real-Guidance 39.49 33.64 39.80 29.78 35.68
    Real-Mix 30.29 29.44 30.02 26.95 29.18
    DA-Fusion 44.50 39.04 44.46 33.49 40.37
    Diff-AUG 49.02 40.59 48.71 38.58 44.23
    Diff-Mix 33.84 30.53 34.72 28.19 31.82
    Diff-II 49.84 41.46 51.01 42.03 46.09
    """,
    "diffii_4": """
    neither 30.73 47.9 2.11
    II 30.65 51.5 3.86
    TD 30.63 50.0 4.15
    II_and_TD 30.60 52.7 5.52
    """,
    "genie_1": """
    Weak 63.1 81.4 64.3 82.3 64.6 83.4
    Strong 62.8 81.2 64.5 82.1 64.8 83.2
    CutMix 62.7 80.6 64.0 81.7 64.3 83.2
    MixUp 62.1 80.7 63.7 80.1 63.8 84.6
    Img2Img-L 63.9 82.1 65.5 82.9 66.0 84.0
    Img2Img-H 69.1 84.0 70.5 84.8 71.1 85.7
    Txt2Img 74.1 84.6 75.4 85.5 76.4 86.5
    GeNIe 75.5 85.4 77.1 86.3 77.3 87.2
    GeNIe-Ada 76.8 85.9 78.5 86.6 78.6 87.9
    """,
    "genie_2": """
    Weak 63.1 81.0 65.0 82.5 66.8 84.7
    Strong 62.8 80.9 64.8 82.4 66.5 84.5
    CutMix 62.1 78.9 63.8 80.3 66.0 83.3
    MixUp 62.1 78.4 64.1 80.0 66.1 84.1
    Img2Img-L 63.9 81.8 66.1 83.1 67.8 85.3
    Img2Img-H 68.7 83.5 70.4 84.7 72.4 86.7
    Txt2Img 72.9 84.2 75.0 85.4 77.1 87.3
    GeNIe 73.6 85.0 75.7 86.0 78.0 88.0
    GeNIe-Ada 75.1 85.5 76.9 86.3 78.8 88.6
    """,
    "genie_3": """
    LiVT 73.6 56.4 41.0 60.9
    Img2Img-L 74.3 56.4 34.3 60.5
    Img2Img-H 73.8 56.4 45.3 61.6
    Txt2Img 74.9 55.6 48.3 62.2
    GeNIe 74.5 56.7 50.9 62.8
    GeNIe-Ada 74.0 56.9 52.7 63.1
    """,
    "genie_4": """
    Baseline 90.3 49.8 82.9 29.2
    Img2Img-L 90.7 50.4 87.4 31.0
    Img2Img-H 91.3 56.4 91.7 34.7
    Txt2Img 92.0 81.3 93.0 41.7
    GeNIe_r=0.5 92.0 84.6 91.5 39.8
    GeNIe_r=0.6 92.2 87.1 92.5 45.0
    GeNIe_r=0.7 92.5 87.9 92.9 47.0
    GeNIe_r=0.8 92.5 87.7 93.1 46.5
    GeNIe_r=0.9 92.4 87.1 93.1 45.7
    GeNIe-Ada 92.6 87.9 93.1 46.9
    """,
    "genie_5": """
    GeNIe_r=0.5 60.42 63.65 77.61 73.4
    GeNIe_r=0.6 69.66 72.10 82.79 85.8
    GeNIe_r=0.7 74.50 77.05 84.95 94.5
    GeNIe_r=0.8 75.45 77.28 87.22 98.2
    GeNIe_r=0.9 74.96 77.73 87.00 99.3
    GeNIe-Ada 76.79 78.64 87.88 98.9
    """,
    "dinv_best": """
    Real 83.3 93.8
    Diffusion_Inversion 89.0 95.4
    """,
    "dinv_augmentation": """
    Real 83.2 87.0 89.4 88.1
    Diffusion_Inversion 89.5 91.5 91.5 92.6
    """,
    "dinv_gan": """
    GAN_inversion 82.9
    Diffusion_Inversion 93.7
    """,
    "dinv_lecf": """
    LECF 33.6 .648 .392 .486
    Diffusion_Inversion 17.7 .831 .661 .787
    """,
    "dinv_laion": """
    LAION_K=10 22.5 23.0 21.7
    LAION_K=25 29.9 27.8 27.7
    LAION_K=50 23.4 22.1 25.8
    Diffusion_Inversion 82.1 67.5 93.7
    """,
    "retrieval": """
    10_%_real 57.2
    20_%_real 70.2
    Boomerang 56.3
    CLIP_prompts 60.9
    Textual_inversion 61.0
    Nearest-neighbour_retrieval 62.6
    """,
}
# Means of printed columns, and the printed column that should be their mean.
MEANS = {
    "diffii_1_rn50": {"Avg5": ["CUB5", "Air5", "Pet5", "Car5"], "Avg10": ["CUB10", "Air10", "Pet10", "Car10"]},
    "diffii_1_vitb": {"Avg5": ["CUB5", "Air5", "Pet5", "Car5"], "Avg10": ["CUB10", "Air10", "Pet10", "Car10"]},
    "diffii_2": {"CUBAvg": ["CUB100", "CUB20", "CUB10"], "FlowerAvg": ["Flower100", "Flower20", "Flower10"]},
    "diffii_3": {"Avg": ["land,land", "water,water", "land,water", "water,land"]},
}
WRONG_MEANS = {("diffii_1_rn50", "Real-Filter", "Avg10")}
HALF = 0.005 + 1e-9  # of the last printed digit


def typed(text: str) -> dict[str, list[float]]:
    rows = [line.split() for line in text.strip().splitlines()]
    return {name.replace("_", " "): [float(value) for value in values] for name, *values in rows}


def test_every_table_was_typed_twice() -> None:
    assert set(paper_tables()) == set(TYPED)


@pytest.mark.parametrize("name", TYPED)
def test_numbers_are_those_of_the_paper(name: str) -> None:
    found: dict[str, list[float]] = {}
    for number in published(paper_tables()[name]):
        found.setdefault(number.method, []).append(number.value)
    assert found == typed(TYPED[name])


def test_deviations_of_the_retrieval_table() -> None:
    assert [n.plus_minus for n in published(paper_tables()["retrieval"])] == [0.2, 0.3, 0.3, 0.2, 0.4, 0.1]


def test_printed_means_are_means_but_for_one_that_is_marked() -> None:
    wrong = set()
    for name, means in MEANS.items():
        table = paper_tables()[name]
        for row, values in table.rows.items():
            by_column = dict(zip(table.columns, values, strict=True))
            for mean, parts in means.items():
                if abs(sum(by_column[part] for part in parts) / len(parts) - by_column[mean]) > HALF:
                    wrong.add((name, row, mean))
    assert wrong == WRONG_MEANS
    marked = {(table.id, mark.row, mark.column) for table in paper_tables().values() for mark in table.marks}
    assert wrong <= marked


def test_two_tables_of_genie_agree_where_they_overlap() -> None:
    short, long = paper_tables()["genie_1"], paper_tables()["genie_5"]
    for row, same in (("GeNIe", "GeNIe r=0.8"), ("GeNIe-Ada", "GeNIe-Ada")):
        ours = dict(zip(short.columns, short.rows[row], strict=True))
        finer = dict(zip(long.columns, long.rows[same], strict=True))
        for column in ("RN18_1", "RN50_1", "RN50_5"):
            assert abs(ours[column] - finer[column]) <= 0.05 + 1e-9


def test_values_that_doubts_are_about_are_marked() -> None:
    marks = {(n.table, n.method, n.value): n.mark for n in all_published() if n.mark and n.mark != "secondary"}
    assert set(marks) == {
        ("diffii_1_rn50", "Real-Filter", 69.64),
        ("diffii_1_rn50", "Real-Filter", 70.66),
        ("diffii_1_rn50", "Diff-AUG", 63.04),
        ("genie_1", "MixUp", 84.6),
    }
    secondary = {n.table for n in all_published() if n.mark.startswith("secondary")}
    assert secondary == {name for name in TYPED if name.startswith(("dinv", "retrieval"))}


def test_accuracies_are_percentages() -> None:
    assert all(10 < n.value < 100 for n in all_published() if n.metric == "top-1 accuracy, %")
    assert all(n.metric for n in all_published())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": {"a": [1.0]}}, "row 'a' has 1 values, expected 2"),
        ({"plus_minus": {"b": [0.1, 0.1]}}, "plus_minus of 'b', which is no row"),
        ({"marks": [{"row": "a", "column": "z", "mark": "odd"}]}, "a mark at 'a', 'z'"),
        ({"arxiv": "2408"}, "arxiv"),
    ],
)
def test_a_table_that_cannot_be_is_refused(change: dict, sentence: str) -> None:
    good = load_yaml(
        "{id: t, paper: P, arxiv: '2408.16266', number: '1', model: m, metric: top-1, note: '', suites: [],"
        " columns: {x: {dataset: cub, protocol: full}, y: {dataset: cub, protocol: full}}, rows: {a: [1, 2]}}"
    )
    PaperTable.model_validate(good)
    with pytest.raises(ValidationError, match=sentence):
        PaperTable.model_validate({**good, **change})
