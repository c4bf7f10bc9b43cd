"""What a generator shard planned and made in a round (``pool/raw/manifest_rdNN_IofN.json``)."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.typed import from_record

FORMAT_VERSION = 1


@dataclass(frozen=True)
class GeneratedInstance:
    """One generated image. ``criterion_before`` is guidance's criterion at the first guided step, before
    anything was shifted, ``criterion_after`` that of the finished image; None where nothing was guided."""

    file: str
    category_id: int
    instance: int
    seed: int
    template: str
    prompt: str
    guided: bool
    criterion_before: float | None = None
    criterion_after: float | None = None


@dataclass(frozen=True)
class Manifest:
    """One shard of a round. ``instances`` are those on disk; ``asked`` counts all planned ones per
    category id; ``complete`` says that nothing of the plan is missing."""

    round: int
    shard: int
    num_shards: int
    model: str
    complete: bool
    asked: dict[int, int]
    instances: list[GeneratedInstance]
    seconds: float


def write_manifest(layout: RunLayout, manifest: Manifest) -> None:
    """Writes the manifest to its place in the run."""
    content: dict[str, Any] = {"format": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    files.write_json(layout.manifest(manifest.round, manifest.shard, manifest.num_shards), content)


def read_manifest(path: str) -> Manifest:
    """Reads a manifest; raises UserError if it is of another format, damaged or names a file out of place."""
    content = files.read_json(path)
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has manifest format {version!r}, this version reads {FORMAT_VERSION}: generate it again"
        )
    try:
        instances = [from_record(GeneratedInstance, item) for item in content["instances"]]
        asked = {int(category): int(count) for category, count in content["asked"].items()}
        manifest = from_record(Manifest, {**content, "instances": [], "asked": {}})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a generator manifest ({error}): generate it again") from error
    for instance in instances:
        if not instance.file or set(instance.file) & set("/\\\0") or instance.file.startswith("."):
            raise UserError(f"{path} names the file {instance.file!r}: only plain file names may stand there")
    return dataclasses.replace(manifest, asked=asked, instances=instances)


def read_round(layout: RunLayout, round_: int) -> list[Manifest]:
    """The manifests of a round that exist, in order of their shards.

    Raises UserError when they disagree about the number of shards.
    """
    manifests = [read_manifest(path) for path in layout.manifests(round_)]
    counts = sorted({manifest.num_shards for manifest in manifests})
    if len(counts) > 1:
        raise UserError(
            f"round {round_} in {layout.root} has manifests for {' and '.join(map(str, counts))} shards: "
            "remove those of the division that was given up (pool/raw/manifest_*)"
        )
    return sorted(manifests, key=lambda manifest: manifest.shard)


def is_complete(manifests: list[Manifest]) -> bool:
    """Whether these are all shards of a round, each with everything that it planned."""
    return (
        bool(manifests) and len(manifests) == manifests[0].num_shards and all(m.complete for m in manifests)
    )
