"""setup.cfg agrees with the tree. Nothing is built here."""

from __future__ import annotations

import ast
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hftransfer

ROOT = Path(__file__).parents[2]
# Where the name to import is not the name to install.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml"}


@pytest.fixture(scope="module")
def config() -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def listed(config: ConfigParser, section: str, option: str) -> list[str]:
    return config[section][option].split("\n")[1:]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = map(Requirement, lines)
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def third_party_imports(folder: str) -> set[str]:
    """Distributions imported anywhere below a folder, inside functions too."""
    modules: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.add(node.module.split(".")[0])
    foreign = modules - set(sys.stdlib_module_names) - {"hftransfer", "recipes"}
    return {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in foreign}


def test_every_import_is_declared_and_every_dependency_imported(config: ConfigParser) -> None:
    required = set(requirements(listed(config, "options", "install_requires")))
    extras = ("fairlearn", "trackers", "carbon", "onnx", "sweep")
    optional = {name for extra in extras for name in requirements(listed(config, "options.extras_require", extra))}
    imported = third_party_imports("hftransfer") | third_party_imports("recipes")
    assert imported - required - optional == set()
    assert required - imported == set()


def test_every_requirement_has_both_bounds(config: ConfigParser) -> None:
    lines = listed(config, "options", "install_requires")
    for extra in config["options.extras_require"]:
        lines += [
            line for line in listed(config, "options.extras_require", extra) if not line.startswith("hftransfer[")
        ]
    for name, requirement in requirements(lines).items():
        assert {specifier.operator for specifier in requirement.specifier} == {">=", "<"}, name


def test_every_package_is_listed(config: ConfigParser) -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "hftransfer").rglob("*.py")}
    in_tree = {".".join(folder.parts) for folder in folders} | {"hftransfer.recipes"}
    assert set(listed(config, "options", "packages")) == in_tree
    without_init = [folder for folder in [*folders, Path("recipes")] if not (ROOT / folder / "__init__.py").is_file()]
    assert without_init == []


def test_package_data_exists(config: ConfigParser) -> None:
    folder_of = {"hftransfer": "hftransfer", "hftransfer.recipes": "recipes"}
    for package, folder in folder_of.items():
        for pattern in config["options.package_data"][package].split(", "):
            assert list((ROOT / folder).glob(pattern)), f"{folder}/{pattern}"


def test_configs_hold_nothing_but_packaged_files() -> None:
    configs = [path for path in (ROOT / "recipes" / "configs").rglob("*") if path.is_file()]
    assert [path for path in configs if path.suffix not in {".yaml", ".json"}] == []


def test_console_entry_point_resolves(config: ConfigParser) -> None:
    name, target = listed(config, "options.entry_points", "console_scripts")[0].split(" = ")
    module, attribute = target.split(":")
    assert name == "hftransfer"
    assert callable(getattr(import_module(module), attribute))


def test_version_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{hftransfer.__version__}]" in changelog
