from exchange.fonts import label_font


def test_names_have_their_own_letters_and_not_the_box_that_stands_for_none():
    font = label_font(20)
    missing = bytes(font.getmask("\U0010fffd"))
    for letter in "aßåłжΩ":
        assert bytes(font.getmask(letter)) != missing, letter
