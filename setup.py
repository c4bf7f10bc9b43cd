"""Lays the repository into the wheel as one package: ``mrca``, with everything else below ``mrca/_repository``.

Whoever installs it keeps their own ``tools`` and ``exchange``; the scripts find each other as in a clone. The rest of
the metadata is in pyproject.toml.
"""

from setuptools import find_packages, setup

_PARTS = ("exchange", "generator", "diSegmenter", "detectron2_ext", "tools")

setup(
    packages=[
        "mrca",
        "mrca._repository",
        *(f"mrca._repository.{name}" for name in find_packages(include=[f"{part}*" for part in _PARTS])),
    ],
    package_dir={"mrca": "mrca", "mrca._repository": "."},
    package_data={
        "mrca._repository": ["launch.sh", "configs/**/*.yaml", "assets/digits/**"],
        "mrca._repository.exchange": ["*.yaml"],
        "mrca._repository.tools.run_report": ["page.*"],
    },
    include_package_data=False,
    script_name="setup.py",  # so that it is not taken for a module of mrca._repository
)
