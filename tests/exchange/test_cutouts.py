"""The file of a cut-out: the object, and its halves behind it."""

import cv2
import numpy as np
import pytest

from exchange import files
from exchange.cutouts import encode_cutout, has_its_halves, is_whole_cutout, read_half, without_halves
from exchange.images import decode_rgba, encode_png


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (65, 130, 4), np.uint8)


def test_each_half_is_the_mean_of_what_is_before_it_down_to_16_pixels(pixels):
    data = encode_cutout(pixels, pixels[..., 3], [0, 0, 130, 65])
    np.testing.assert_array_equal(decode_rgba(data, ""), pixels)
    before = pixels
    for height, width in ((32, 65), (16, 32)):
        half = read_half(data, (65, 130), (height, width))
        means = before[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 4).mean(axis=(1, 3))
        np.testing.assert_array_equal(half, np.floor(means + 0.5))
        before = half
    assert read_half(data, (65, 130), (33, 65)) is None and read_half(data, (65, 130), (32, 66)) is None
    assert read_half(data, (65, 130), (1, 1)).shape == (16, 32, 4)


def test_halves_of_another_object_are_told_and_none_are_fine(pixels):
    data = encode_cutout(pixels, pixels[..., 3], [0, 0, 130, 65])
    assert has_its_halves(data, pixels) and has_its_halves(without_halves(data), pixels)
    assert not has_its_halves(data[:-1] + bytes([data[-1] ^ 1]), pixels)
    assert not has_its_halves(data[:-1], pixels)


def test_what_is_outside_of_the_box_is_left_out_and_alpha_is_the_mask_s(pixels):
    alpha = np.full((65, 130), 99, np.uint8)
    cutout = decode_rgba(encode_cutout(pixels[..., :3], alpha, [3, 5, 20, 30]), "")
    np.testing.assert_array_equal(cutout[..., :3], pixels[5:35, 3:23, :3])
    assert (cutout[..., 3] == 99).all()


def test_other_programs_see_the_whole_object(pixels):
    data = encode_cutout(pixels, pixels[..., 3], [0, 0, 130, 65])
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(seen[..., [2, 1, 0, 3]], pixels)


def test_a_file_that_ends_too_early_is_not_whole_but_older_ones_have_no_halves(pixels, tmp_path):
    path = str(tmp_path / "cutout.webp")
    data = encode_cutout(pixels, pixels[..., 3], [0, 0, 130, 65])
    whole = len(data) - 4 * (32 * 65 + 16 * 32)
    assert not is_whole_cutout(path, (65, 130))
    for end in (
        *range(20),
        whole - 1,
        whole,
        whole + 1,
        whole + 4 * 32 * 65,
        len(data) - 1,
        len(data),
        len(data) + 1,
    ):
        files.write_bytes(path, (data + b"beyond")[:end])
        assert is_whole_cutout(path, (65, 130)) == (end in (whole, len(data))), end
    for of_older_pools in (data[:whole], encode_png(pixels)):
        assert read_half(of_older_pools, (65, 130), (5, 5)) is None
    files.write_bytes(path, b"WAVE" + data[4:])
    assert not is_whole_cutout(path, (65, 130))


@pytest.mark.parametrize("data", [b"RIFF\0\0\0\0more", b"RIFF\xff\xff\xff\xff", b"RIFF"])
def test_what_is_behind_an_object_is_its_halves_or_refused(data):
    with pytest.raises(ValueError, match="bytes of halves"):
        read_half(data, (65, 130), (5, 5))
