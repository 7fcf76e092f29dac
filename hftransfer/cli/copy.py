"""`hftransfer copy RECIPE`: an editable recipe and config."""

from __future__ import annotations

import shutil
from pathlib import Path

from hftransfer.cli.recipes import check_name, config_files, recipes_folder, schema_file
from hftransfer.errors import RecipeError


def copy(name: str, /, *, to: Path = Path(), overwrite: bool = False) -> None:
    """Copy a recipe and its configs into a folder, to edit and run there.

    Args:
        name: The recipe; `hftransfer recipes` lists them.
        to: The folder, made if it is absent.
        overwrite: Replace files that are there already.
    """
    check_name(name)
    sources = [recipes_folder() / f"{name}.py", *config_files(name), schema_file()]
    # Laid out as here: the configs name their schema by a relative path.
    copies = {source: to / source.relative_to(recipes_folder()) for source in sources}
    existing = [target for target in copies.values() if target.exists()]
    if existing and not overwrite:
        raise RecipeError(
            "exists already", where=str(existing[0]), fix="choose another folder with --to, or --overwrite"
        )
    try:
        for source, target in copies.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            print(target)
    except OSError as error:
        raise RecipeError(
            f"cannot be written ({error.strerror})", where=str(error.filename), fix="check --to"
        ) from error
    print(f"run it with: accelerate launch {copies[sources[0]]} --config FILE.yaml")
