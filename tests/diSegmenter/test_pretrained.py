from unittest.mock import Mock

import torch

from diSegmenter.pretrained import load_pretrained


def test_model_and_processor_are_of_the_revision_that_is_asked_for_and_bring_no_code():
    kind, processor = Mock(), Mock()
    found = load_pretrained("a name", "v2", processor, "model", "KEY", kind)
    assert found == (kind.from_pretrained.return_value, processor.from_pretrained.return_value)
    hub = {"revision": "v2", "trust_remote_code": False}
    kind.from_pretrained.assert_called_once_with("a name", dtype=torch.float32, **hub)
    processor.from_pretrained.assert_called_once_with("a name", **hub)
