from __future__ import annotations

import importlib
import pkgutil

import hftransfer


def test_public_names_stay_what_they_are_whatever_was_imported() -> None:
    for module in pkgutil.walk_packages(hftransfer.__path__, "hftransfer."):
        importlib.import_module(module.name)
    modules = {name for name in hftransfer.__all__ if type(getattr(hftransfer, name)).__name__ == "module"}
    assert modules == {"metrics"}
    assert callable(hftransfer.finetune)
