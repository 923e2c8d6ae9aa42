from tests.packaging.check_wheel import METADATA, compare, tracked_files
from tests.project import PROJECT

TRACKED = ["coserve_cli/main.py", "coserve_training/recipes/cifar.toml"]
WHOLE = [*TRACKED, *(f"coserve-0.1.0.dist-info/{name}" for name in METADATA)]


def test_a_wheel_holds_the_packages_and_its_metadata() -> None:
    assert compare(WHOLE, TRACKED) == []


def test_a_missing_or_additional_file_is_named() -> None:
    names = [*(name for name in WHOLE if name != TRACKED[1] and "LICENSE" not in name), "tests/project.py"]
    assert compare(names, TRACKED) == [
        "missing: coserve_training/recipes/cifar.toml",
        "missing: licenses/LICENSE",
        "not tracked by git: tests/project.py",
    ]


def test_every_package_is_tracked() -> None:
    tracked = tracked_files()
    assert "coserve_training/recipes/cifar.toml" in tracked
    command = PROJECT["scripts"]["coserve"].partition(":")[0]
    assert f"{command.replace('.', '/')}.py" in tracked
