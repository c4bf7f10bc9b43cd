"""Stage 3: trains the segmenter with copy-paste, evaluates it, tells the generator where it is weak.

Where Detectron2 is installed, importing this package makes the network and the data sets known to it.
"""

import logging
from importlib.util import find_spec

if find_spec("detectron2"):
    try:
        from detectron2_ext.with_detectron2.registration import register
    except ImportError as error:
        logging.getLogger(__name__).warning("Detectron2 is installed but cannot be used here: %s", error)
    else:
        register()
