from importlib import util

from exchange.fonts import label_font


def test_names_have_their_own_letters_and_not_the_box_that_stands_for_none():
    font = label_font(20)
    assert font.size == 20
    missing = bytes(font.getmask("\U0010fffd"))
    for letter in "aßåłжΩ":
        assert bytes(font.getmask(letter)) != missing, letter


def test_names_are_as_large_where_their_font_is_not(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert label_font(37).size == 37
