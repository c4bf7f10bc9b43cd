"""The file of a cut-out: the object, and its halves behind it."""

import cv2
import numpy as np
import pytest

from exchange import files
from exchange.cutouts import encode_cutout, is_whole_cutout, split_cutout
from exchange.images import decode_rgba


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (67, 130, 4), np.uint8)


def test_each_image_is_the_mean_of_the_one_before_down_to_16_pixels(pixels):
    images = [
        decode_rgba(data, "") for data in split_cutout(encode_cutout(pixels, pixels[..., 3], [0, 0, 130, 67]))
    ]
    assert [image.shape for image in images] == [(67, 130, 4), (33, 65, 4), (16, 32, 4)]
    np.testing.assert_array_equal(images[0], pixels)
    for whole, half in zip(images, images[1:], strict=False):
        height, width = half.shape[:2]
        means = whole[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 4).mean(axis=(1, 3))
        np.testing.assert_array_equal(half, np.floor(means + 0.5))


def test_what_is_outside_of_the_box_is_left_out_and_alpha_is_the_mask_s(pixels):
    alpha = np.full((67, 130), 99, np.uint8)
    cutout = decode_rgba(encode_cutout(pixels[..., :3], alpha, [3, 5, 20, 30]), "")
    np.testing.assert_array_equal(cutout[..., :3], pixels[5:35, 3:23, :3])
    assert (cutout[..., 3] == 99).all()


def test_other_programs_see_the_whole_object(pixels):
    data = encode_cutout(pixels, pixels[..., 3], [0, 0, 130, 67])
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(seen[..., [2, 1, 0, 3]], pixels)


def test_a_file_that_ends_too_early_is_not_whole(pixels, tmp_path):
    path = str(tmp_path / "cutout.webp")
    data = encode_cutout(pixels, pixels[..., 3], [0, 0, 130, 67])
    ends = set(np.cumsum([len(image) for image in split_cutout(data)]).tolist())
    assert not is_whole_cutout(path)
    for end in (
        *range(0, 20),
        *range(len(data) // 2, len(data), 501),
        *(e + d for e in ends for d in (-1, 0, 1, 9)),
    ):
        files.write_bytes(path, (data + b"RIFF beyond")[:end])
        assert is_whole_cutout(path) == (end in ends), end  # without the last half it is as in older pools
    files.write_bytes(path, b"WAVE" + data[4 : min(ends)])
    assert not is_whole_cutout(path)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\0\0\0\0", b"\x89PNG no image", b"RIFF" * 1000])
def test_damaged_bytes_are_split_to_an_end(data):
    assert b"".join(split_cutout(data)) == data
