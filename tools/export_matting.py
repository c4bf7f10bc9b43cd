"""The matting network of a configuration as an ONNX file, which SEGMENTER.FOREGROUND: onnx runs without its code.

It takes any number of images of SEGMENTER.INPUT_SIZE and gives the same masks, with the keys ONNX_* as they stand in
exchange/defaults.yaml.
"""

import argparse
import importlib.util
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import files
from exchange.command_line import make_parser, quiet_model_libraries
from exchange.config import add_config_arguments, load_config
from exchange.errors import UserError, run_cli


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "digits.onnx --config configs/digits/MRCA_digits.yaml")
    parser.add_argument("out", metavar="OUT", help="file to write, called ….onnx")
    add_config_arguments(parser)
    return parser


def main() -> None:
    args = build_parser().parse_intermixed_args()
    if not args.out.endswith(".onnx"):
        raise UserError(f"{args.out} is to be written as ONNX: give a name that ends in .onnx")
    for package in ("onnx", "onnxscript"):  # torch's exporter asks for them
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"writing ONNX needs {package}, which is not installed: pip install onnx onnxscript"
            )
    cfg = load_config(args.config, args.opts)

    from diSegmenter.foreground import load_network  # only now: seconds that --help should not take
    from diSegmenter.segmentAndFilter import chosen_foregrounds
    from tools.matting_to_onnx import as_onnx

    quiet_model_libraries()
    for library in ("onnx_ir", "onnxscript"):  # they log what they simplify, node by node
        logging.getLogger(library).setLevel(logging.WARNING)
    matting = [chosen[1:] for chosen in chosen_foregrounds(cfg) if chosen[0] == "matting"]
    if len(matting) != 1:
        raise UserError(
            f"{args.config} has {len(matting)} entries matting in SEGMENTER.FOREGROUND: give the one that is meant, "
            "as SEGMENTER.FOREGROUND matting SEGMENTER.FOREGROUND_MODEL NAME"
        )
    network = load_network("matting", *matting[0], cfg.SEGMENTER.TRUST_REMOTE_CODE)
    files.write_bytes(args.out, as_onnx(network, cfg.SEGMENTER.INPUT_SIZE))
    print(args.out)


if __name__ == "__main__":
    run_cli(main)
