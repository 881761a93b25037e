"""PyPI has another project named `specdec`, which installs a package of the same name."""

from __future__ import annotations

from pathlib import Path


def refuse_other_project(folder: Path) -> None:
    """Raise if the distribution `specdec` is installed in the folder that holds this package.

    Its files and ours lie in one package: whichever was installed last has replaced `specdec/__init__.py`, and removing
    the other project removes that file. Only this folder is listed: `importlib.metadata` takes longer to import.

    Raises:
        ImportError: naming the other version, the folder, and the two commands that repair it.
    """
    for found in folder.glob("specdec-*.dist-info"):
        version = found.name.removeprefix("specdec-").removesuffix(".dist-info")
        raise ImportError(
            f"specdec: expected specdec-kernels alone in {folder}, got the distribution specdec {version} too: another "
            "project with a package of the same name. Run `pip uninstall specdec`, then "
            "`pip install --force-reinstall --no-deps specdec-kernels`"
        )
