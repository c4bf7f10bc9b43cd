import io

import cv2
import numpy as np
import pytest
from PIL import Image

from detectron2_ext.data.images import read_gray, read_image, read_rgba
from exchange.images import BadImage


def smooth(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_jpeg(path, image: np.ndarray, orientation: int | None = None) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(image).save(path, quality=95, exif=exif)


@pytest.mark.parametrize("shrink", [1.0, 0.2])
def test_a_png_is_decoded_whole_with_its_channels_in_the_order_rgb(tmp_path, shrink):
    image = smooth(40, 60)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png"), (40, 60), shrink), image)


def test_a_grey_image_gets_three_channels(tmp_path):
    Image.fromarray(smooth(40, 60)[..., 0]).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png"), (40, 60)).shape == (40, 60, 3)


def test_a_mask_that_was_saved_in_colours_is_read_as_one_channel(tmp_path):
    mask = smooth(40, 60)[..., 0]
    Image.fromarray(np.dstack([mask] * 3)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_gray(str(tmp_path / "a.png")), mask)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", [1.0, 0.4])
def test_exif_orientation_turns_the_image_upright(tmp_path, orientation, shrink):
    path = tmp_path / "a.jpg"
    write_jpeg(path, smooth(48, 64), orientation)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    read = read_image(str(path), upright.shape[:2], shrink)
    if shrink < 0.5:
        assert read.shape[:2] == tuple(extent // 2 for extent in upright.shape[:2])
        upright = cv2.resize(upright, read.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(read.astype(int) - upright).mean() < 3


@pytest.mark.parametrize(
    ("shrink", "factor"), [(1.0, 1), (0.51, 1), (0.5, 2), (0.26, 2), (0.25, 4), (0.12, 8), (0.01, 8)]
)
def test_a_jpeg_is_decoded_as_small_as_the_resize_allows(tmp_path, shrink, factor):
    write_jpeg(tmp_path / "a.jpg", smooth(81, 122))
    read = read_image(str(tmp_path / "a.jpg"), (81, 122), shrink)
    assert read.shape[:2] == (-(-81 // factor), -(-122 // factor))


def test_a_reduced_image_keeps_its_colours(tmp_path):
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 250
    write_jpeg(tmp_path / "a.jpg", red)
    read = read_image(str(tmp_path / "a.jpg"), (64, 64), 0.2)
    assert read[..., 0].min() > 240 and read[..., 1:].max() < 10


def test_what_is_no_image_ends_early_or_has_another_size_is_bad(tmp_path):
    path = tmp_path / "a.jpg"
    write_jpeg(path, smooth(48, 64))
    data = path.read_bytes()
    for shrink in (1.0, 0.2):
        with pytest.raises(BadImage, match="64 x 48 pixels, but the annotations say 48 x 64"):
            read_image(str(path), (64, 48), shrink)
    path.write_bytes(data + bytes(1000))  # as some cameras do
    assert read_image(str(path), (48, 64)).shape == (48, 64, 3)
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    write_jpeg(path, noise)
    thumbnail = b"\xff\xe1\x10\0" + data[:4094].ljust(4094, b"\0")  # with an end of its own
    large = data[:2] + thumbnail + path.read_bytes()[2:]
    for cut in (data[: len(data) // 2], large[: len(large) - 1000]):
        path.write_bytes(cut)
        with pytest.raises(BadImage, match="ends too early"):
            read_image(str(path))
    assert len(large) > 80_000
    for content in (b"", b"no image", data[100:]):
        path.write_bytes(content)
        with pytest.raises(BadImage, match="a.jpg: not an image, or damaged"):
            read_image(str(path), (48, 64))
    with pytest.raises(BadImage, match="there is no file"):
        read_image(str(tmp_path / "missing.jpg"), (48, 64))


def test_an_image_of_16_bits_is_no_cutout(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 5, 4), 40000, np.uint16))
    with pytest.raises(BadImage, match="a.png: not an image of 8 bits per channel, or damaged"):
        read_rgba(str(tmp_path / "a.png"))


def test_a_truncated_png_is_bad(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(smooth(200, 200)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(BadImage):
        read_image(str(tmp_path / "a.png"), (200, 200))
