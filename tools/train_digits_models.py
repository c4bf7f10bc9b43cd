"""Trains the embedded models of ``assets/digits`` on a CPU, each within an hour or two, and measures them.

``sd3`` needs the trained ``clip``, whose text encoder it uses, and ``judge`` starts from its image tower.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import files
from exchange.command_line import make_parser
from exchange.config import from_repository
from exchange.errors import run_cli


def train_clip(out: str, seed: int, steps: int) -> dict[str, float]:
    from tools.digits import train_clip as recipe

    model, processor = recipe.train(steps, seed)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    return recipe.measure(model.float(), processor)


def train_foreground(out: str, seed: int, steps: int) -> dict[str, float]:
    from tools.digits import train_foreground as recipe

    model = recipe.train(out, steps, seed)
    recipe.save(model, out)
    return recipe.measure(model)


def train_judge(out: str, seed: int, steps: int) -> dict[str, float]:
    from tools.digits import train_judge as recipe

    model, processor = recipe.train(files.join(str(Path(out).parent), "clip"), steps, seed)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    return recipe.measure(model.float(), processor)


def train_sd3(out: str, seed: int, steps: int) -> dict[str, float]:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    from tools.digits import samples
    from tools.digits import train_sd3 as recipe

    clip = files.join(str(Path(out).parent), "clip")
    images, prompts, _ = recipe.make_pictures(samples.split()["generation"], 24_000, seed)
    autoencoder = recipe.train_autoencoder(images, max(steps // 4, 1), seed)
    pipeline = recipe.assemble(
        CLIPModel.from_pretrained(clip, dtype=torch.float32), CLIPProcessor.from_pretrained(clip), autoencoder
    )
    recipe.train_transformer(pipeline, images, prompts, steps, seed)
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
    _forget_where_it_came_from(out)
    return recipe.measure(pipeline.to(torch.float32), images)


def _forget_where_it_came_from(folder: str) -> None:
    """Removes the path that diffusers notes in its configuration files: it is one of this machine."""
    for path in Path(folder).rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n")


def train_segmenter(out: str, seed: int, steps: int) -> dict[str, float | None]:
    from tools.digits import train_segmenter as recipe

    feedback = recipe.train(files.join(out, "run"), steps, seed)
    recipe.export(feedback, out)
    return recipe.measured(feedback)


_RECIPES = {
    "clip": (train_clip, 2500),
    "foreground": (train_foreground, 1000),
    "judge": (train_judge, 1200),
    "sd3": (train_sd3, 8000),
    "segmenter": (train_segmenter, 800),
}


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "segmenter --out /tmp/digits --steps 20")
    parser.add_argument("model", choices=sorted(_RECIPES), help="which of them to train")
    parser.add_argument(
        "--out", default="assets/digits", metavar="FOLDER", help="folder of the embedded models"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="training steps (default: the model's own number)"
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    recipe, steps = _RECIPES[args.model]
    folder = files.join(from_repository(args.out), args.model)
    measured = recipe(folder, args.seed, args.steps or steps)
    files.write_json(files.join(folder, "quality.json"), {"seed": args.seed, **measured})
    for name, value in measured.items():
        print(f"{name:40} {value:.4f}")


if __name__ == "__main__":
    run_cli(main)
