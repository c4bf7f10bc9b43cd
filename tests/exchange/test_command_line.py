"""What model libraries say on the terminal."""

from huggingface_hub import utils as hub
from transformers.utils import logging

from exchange.command_line import quiet_model_libraries


def test_model_libraries_are_quiet_and_downloads_keep_their_bars():
    before = logging.get_verbosity()
    logging.enable_progress_bar()  # and that of downloads
    try:
        quiet_model_libraries()
        assert logging.get_verbosity() == logging.ERROR and not logging.is_progress_bar_enabled()
        assert not hub.are_progress_bars_disabled()
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
