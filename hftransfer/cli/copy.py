"""`hftransfer copy RECIPE`: an editable recipe and config."""

from __future__ import annotations

import shutil
from pathlib import Path

from hftransfer.cli.recipes import check_name, config_files, recipes_folder
from hftransfer.errors import RecipeError


def copy(name: str, /, *, to: Path = Path(), overwrite: bool = False) -> None:
    """Copy a recipe and its configs into a folder, to edit and run there.

    Args:
        name: The recipe; `hftransfer recipes` lists them.
        to: The folder, made if it is absent.
        overwrite: Replace files that are there already.
    """
    check_name(name)
    sources = [recipes_folder() / f"{name}.py", *config_files(name)]
    existing = [to / source.name for source in sources if (to / source.name).exists()]
    if existing and not overwrite:
        raise RecipeError(
            "exists already", where=str(existing[0]), fix="choose another folder with --to, or --overwrite"
        )
    to.mkdir(parents=True, exist_ok=True)
    for source in sources:
        shutil.copyfile(source, to / source.name)
        print(to / source.name)
    print(f"run it with: accelerate launch {to / sources[0].name} --config FILE.yaml")
