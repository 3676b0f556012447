"""Confusion matrices as programs save them: read right, or refused with what was seen."""

from pathlib import Path

import pytest

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.planning.confusion import most_confused, read_confusion

NAMES = ("ant", "bee", "cat")
COUNTS = [[9.0, 1.0, 2.0], [0.0, 7.0, 3.0], [4.0, 0.5, 8.0]]


def read(
    tmp_path: Path, text: str, name: str = "m.csv", encoding: str = "utf-8", names: tuple[str, ...] = NAMES
) -> object:
    """The matrix of a file."""
    (tmp_path / name).write_bytes(text.encode(encoding))
    return read_confusion(tmp_path / name, names)


FORMS = {
    "plain": ("9,1,2\n0,7,3\n4,0.5,8\n", "utf-8"),
    "Excel, CSV UTF-8": ("9,1,2\r\n0,7,3\r\n4,0.5,8\r\n", "utf-8-sig"),
    "Excel, German": ("9;1;2\r\n0;7;3\r\n4;0,5;8\r\n", "utf-8-sig"),
    "Excel, Unicode text": ("9\t1\t2\r\n0\t7\t3\r\n4\t0,5\t8\r\n", "utf-16"),
    "Excel, its own first line": ("sep=;\r\n9;1;2\r\n0;7;3\r\n4;0,5;8\r\n", "utf-8"),
    "empty cells around": ("9;1;2;;\r\n0;7;3;;\r\n4;0,5;8;;\r\n;;;;\r\n", "utf-8"),
    "quoted": ('"9","1","2"\n"0","7","3"\n"4","0.5","8"\n', "utf-8"),
    "names in a row": ("ant,bee,cat\n9,1,2\n0,7,3\n4,0.5,8\n", "utf-8"),
    "names in a column": ("ant;9;1;2\nbee;0;7;3\ncat;4;0,5;8\n", "utf-8"),
    "names in both, another order": (",cat,ant,bee\nbee,3,0,7\ncat,8,4,0.5\nant,2,9,1\n", "utf-8"),
    "names in a row, another order": ("cat,ant,bee\n8,4,0.5\n2,9,1\n3,0,7\n", "utf-8"),
    "of pandas, with ids": (",0,1,2\n0,9,1,2\n1,0,7,3\n2,4,0.5,8\n", "utf-8"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_matrix(tmp_path: Path, form: str) -> None:
    assert read(tmp_path, *(FORMS[form][0], "m.csv", FORMS[form][1])) == COUNTS


def test_json_and_percent(tmp_path: Path) -> None:
    assert read(tmp_path, "[[9, 1, 2], [0, 7, 3], [4, 0.5, 8]]", "m.json", "utf-8-sig") == COUNTS
    shares = "90 %;5%;5%\r\n0%;70%;30%\r\n12,5%;7,5%;80%\r\n"
    assert read(tmp_path, shares, encoding="utf-8-sig") == [[0.9, 0.05, 0.05], [0.0, 0.7, 0.3], [0.125, 0.075, 0.8]]


def test_classes_whose_names_are_numbers_go_by_their_names(tmp_path: Path) -> None:
    text = ",2,0,1\n1,3,0,7\n2,8,4,0.5\n0,2,9,1\n"
    assert read(tmp_path, text, names=("0", "1", "2")) == COUNTS


REFUSED = {
    "9,1\n0,7\n": "it is 2 x 2, expected 3 x 3, with or without class names",
    "": "it is 0 x 0, expected 3 x 3",
    "9,1,2\n0,7\n4,0,8\n": "it is 3 x 2 or 3, expected 3 x 3",
    "ant,bee,dog\n9,1,2\n0,7,3\n4,0,8\n": "its row names lack 'cat' and have 'dog'",
    ",ant,bee,cat\nant,9,1,2\nbee,0,7,3\ncow,4,0,8\n": "its row names lack 'cat' and have 'cow'",
    "9,1,2\n0,-7,3\n4,0,8\n": "row 2, column 2 is '-7', expected a number from 0 on",
    "9,1,2\n0,,3\n4,0,8\n": "row 2, column 2 is '', expected a number from 0 on",
    "9,1,2\n0,nan,3\n4,0,8\n": "row 2, column 2 is 'nan'",
    "9,1,2\n0,1e999,3\n4,0,8\n": "row 2, column 2 is '1e999'",
    "90%,1,2\n0,7,3\n4,0,8\n": "row 1, column 2 is '1', while others are in percent",
    '"1,234",1,2\n0,7,3\n4,0,8\n': "the mark in '1,234' may part thousands or decimals",
    "1.234;1;2\n0;7;3\n4;0;8\n": "the mark in '1.234' may part thousands or decimals",
    "1.234,5;1;2\n0;7;3\n4;0;8\n": "the mark in '1.234,5' may part thousands or decimals",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_read_right_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"confusion: {tmp_path / 'm.csv'} is no confusion matrix of these classes (")
    assert REFUSED[text] in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("m.csv", b"9,1,2\n0,\xe9,3\n", "line 2 holds the byte 0xe9, which is not UTF-8"),
        ("m.xlsx", b"PK\3\4", "a spreadsheet; save it as CSV"),
        ("m.json", b'{"a": 1}', "got no list of lists"),
        ("m.json", b"[[true, 1, 2], [0, 7, 3], [4, 0, 8]]", "row 1, column 1 is 'True', expected a number from 0 on"),
        ("m.json", b"[[NaN, 1, 2], [0, 7, 3], [4, 0, 8]]", "row 1, column 1 is 'nan'"),
        ("m.json", b"[" * 100_000, "recursion"),
        ("gone.csv", None, "No such file or directory"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, data: bytes | None, expected: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(RecipeError) as error:
        read_confusion(tmp_path / name, NAMES)
    assert expected in str(error.value)


def test_the_most_confused_go_by_the_sum_of_both_entries_as_they_stand() -> None:
    """Each rule that one might take instead gives another order."""
    matrix = [
        [90.0, 6.0, 0.0, 5.0],
        [3.0, 900.0, 0.0, 0.0],
        [7.0, 0.0, 1.0, 0.0],
        [5.0, 0.0, 0.0, 900.0],
    ]
    assert most_confused(matrix, 0, 3) == (3, 1, 2)  # 10, 9, 7
    assert most_confused([[cell / sum(row) for cell in row] for row in matrix], 0, 3) == (2, 1, 3)
    assert most_confused([[cell / max(row) for cell in row] for row in matrix], 0, 3) == (2, 1, 3)
    larger = [[max(matrix[i][j], matrix[j][i]) for j in range(4)] for i in range(4)]
    assert most_confused(larger, 0, 3) == (2, 1, 3)
    assert [most_confused(matrix, 0, count) for count in (1, 2)] == [(3,), (3, 1)]
    assert most_confused([[0.0] * 4 for _ in range(4)], 2, 3) == (0, 1, 3), "ties by class id"
