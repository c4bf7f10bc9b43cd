"""What holds for every test."""

import os

if os.environ.get("MRCA_TEST_ONEDNN") == "off":  # tools/test_bits.sh
    import torch

    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
