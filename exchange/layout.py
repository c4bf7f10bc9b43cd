"""Where everything of one run lies on disk."""

import re
from dataclasses import dataclass

from exchange import files

_MANIFEST = re.compile(r"manifest_rd(\d{2,})_(\d+)of(\d+)\.json")


@dataclass(frozen=True)
class RunLayout:
    """Paths of one run; ``root`` is a folder or an fsspec URL. Round -1 stands for the initial weights."""

    root: str

    @property
    def settings_file(self) -> str:
        return files.join(self.root, "run.yaml")

    @property
    def train_dir(self) -> str:
        return files.join(self.root, "train")

    @property
    def pictures_dir(self) -> str:
        return files.join(self.root, "pictures")

    @property
    def feedback_file(self) -> str:
        """The newest feedback, rewritten by every round."""
        return files.join(self.root, "feedback.json")

    def feedback_history(self, round_: int) -> str:
        """The feedback of one round; of the initial weights for round -1."""
        return files.join(self.root, "feedback", "initial.json" if round_ < 0 else f"rd{round_:02}.json")

    @staticmethod
    def instance_name(round_: int, category_id: int, instance: int) -> str:
        """File name of a generated instance, the same in ``pool/raw`` and ``pool/segmented``."""
        return f"{round_:02}_{category_id:04}_{instance:04}.png"

    def raw(self, name: str) -> str:
        """The generated image called ``name``."""
        return files.join(self.root, "pool/raw", name)

    def segmented(self, name: str) -> str:
        """The 8-bit alpha mask of the generated image called ``name``."""
        return files.join(self.root, "pool/segmented", name)

    def manifest(self, round_: int, shard: int, num_shards: int) -> str:
        """What shard ``shard`` of ``num_shards`` planned and made in a round."""
        return files.join(self.root, "pool/raw", f"manifest_rd{round_:02}_{shard}of{num_shards}.json")

    def manifests(self, round_: int) -> list[str]:
        """The manifests of a round that exist, in the order of their names."""
        folder = files.join(self.root, "pool/raw")
        found = ((name, _MANIFEST.fullmatch(name)) for name in files.list_dir(folder))
        return [files.join(folder, name) for name, match in found if match and int(match[1]) == round_]

    def annotations(self, round_: int) -> str:
        """The pool of a round, cumulative, in LVIS/COCO format."""
        return files.join(self.root, "pool/annotations", f"rd{round_:02}.json")

    def annotations_done(self, round_: int) -> str:
        """The marker that the pool of a round is complete."""
        return files.join(self.root, "pool/annotations", f"rd{round_:02}.done")
