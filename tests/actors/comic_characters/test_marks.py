"""Marks of a page as rows: the panel of each, its number, and which face belongs to which body."""

from actors.comic_characters.crops import BOX
from actors.comic_characters.marks import Mark, pairs, panel_of, rows_of_page
from actors.comic_characters.panels import Panel

LEFT, RIGHT, INSET = Panel(0, 0, 100, 100), Panel(110, 0, 300, 100), Panel(120, 10, 180, 60)


def test_a_box_is_in_the_panel_with_most_of_it_an_inset_before_its_panel_and_else_the_nearest() -> None:
    panels = [LEFT, RIGHT, INSET]
    assert panel_of(Panel(80, 10, 120, 40), panels) == 0
    assert panel_of(Panel(130, 20, 150, 50), panels) == 2
    assert panel_of(Panel(200, 20, 250, 50), panels) == 1
    assert panel_of(Panel(310, 120, 330, 140), panels) == 1


def test_faces_are_paired_with_the_body_below_them() -> None:
    bodies = [Mark("body", Panel(0, 0, 40, 100)), Mark("body", Panel(30, 5, 70, 100))]
    faces = [Mark("face", Panel(36, 8, 56, 30)), Mark("face", Panel(10, 2, 30, 24)), Mark("face", Panel(80, 0, 95, 20))]
    assert pairs([*bodies, *faces]) == [(2, 1), (3, 0)]


def test_known_characters_have_one_number_in_all_panels_and_unknown_pairs_one_of_their_own() -> None:
    marks = [
        Mark("face", Panel(10, 5, 30, 25), "anna"),
        Mark("body", Panel(5, 0, 40, 90), "anna"),
        Mark("face", Panel(220, 5, 240, 25)),
        Mark("body", Panel(210, 0, 250, 90)),
        Mark("body", Panel(260, 0, 290, 90), "bert"),
    ]
    rows = rows_of_page("s", "7", marks, [LEFT, RIGHT], ["bert", "anna"])
    told = {(row["page_id"], row["type"], row["index"]): row["char_index"] for row in rows}
    assert told == {
        ("7_0", "body", 0): 1,
        ("7_0", "face", 0): 1,
        ("7_1", "body", 0): 2,
        ("7_1", "face", 0): 2,
        ("7_1", "body", 1): 0,
    }
    assert [rows[0][side] for side in BOX] == [5, 0, 40, 90]
