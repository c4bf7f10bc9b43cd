import os

import pytest

from exchange import files
from exchange.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = str(tmp_path / "a" / "b.bin")
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.atomic_writer(path) as file:
        file.write(b"ne")
        raise RuntimeError
    assert files.read_bytes(path) == b"old"
    assert os.listdir(tmp_path / "a") == ["b.bin"]


def test_json_round_trips_on_a_local_path_and_on_another_file_system(tmp_path):
    for root in (str(tmp_path), "memory://exchange-test"):
        files.write_json(files.join(root, "x", "y.json"), {"a": [1, None]})
        assert files.read_json(files.join(root, "x", "y.json")) == {"a": [1, None]}
        assert files.list_dir(files.join(root, "x")) == ["y.json"]


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(str(tmp_path / "x.json"), float("nan"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("part", ["../x", "/etc/passwd", "a/../../x", "..", "a\\..\\x", "a\0b"])
def test_no_path_leads_out_of_its_root(part):
    with pytest.raises(UserError, match="leads out"):
        files.join("/root", part)


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(UserError, match="missing.json"):
        files.read_json(str(tmp_path / "missing.json"))
    (tmp_path / "half.json").write_text('{"a": [1,')
    with pytest.raises(UserError, match=r"half\.json is not valid JSON"):
        files.read_json(str(tmp_path / "half.json"))


def test_waiting_in_vain_says_for_what_and_where(tmp_path):
    with pytest.raises(UserError, match=r"the pool of round 3.*rd03\.done"):
        files.wait_for(str(tmp_path / "rd03.done"), "the pool of round 3", timeout_s=0.05, poll_s=0.01)


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(str(tmp_path / "x")).startswith("ba7816bf8f01cfea414140de5dae2223")
