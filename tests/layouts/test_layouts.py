"""Views of what rez, conda, Spack and pip wrote show what these tools find and install, as docs/layouts.md says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.version import InvalidVersion, Version

from ansible_collections.renderfarm.overlay.tests.layouts import python_installs, spack_tree
from ansible_collections.renderfarm.overlay.tests.layouts.site_of_views import JUNK, Site
from ansible_collections.renderfarm.overlay.tests.layouts.trees import entries


@pytest.mark.parametrize("view", ["rez", "rez-newest", "conda", "environments", "spack", "python"])
def test_a_view_shows_each_release_as_it_is_on_the_software_root(site: Site, view: str) -> None:
    root = site.roots / view.partition("-")[0]
    for release in site.chosen(view):
        expected = entries(root / release)
        for name in JUNK:
            expected = {path: entry for path, entry in expected.items() if path.split("/")[0] != name.split("/")[0]}
        assert entries(site.shown / view / release) == expected
    assert len(site.chosen(view)) > 1
    shown = {str(path.relative_to(site.shown / view)) for path in (site.shown / view).rglob("*")}
    assert all(path.startswith(tuple(site.chosen(view))) for path in shown if path.count("/") > 1)


def test_a_second_deployment_changes_nothing(site: Site) -> None:
    assert re.search(r"^node +: .* changed=0 ", site.deploy(), re.MULTILINE), site.log


# ---- rez


def test_a_view_of_a_package_repository_has_the_versions_that_rez_finds(site: Site, repository: Path) -> None:
    found = site.found_by_rez(repository)
    # The pattern wants versions, and the run names a package that has none.
    assert found.pop("unversioned")["versions"] == [""]
    assert "unversioned is passed over: it has package.py, so it is a rez package without a version" in site.first_log
    assert site.chosen("rez") == sorted(f"{name}/{version}" for name in found for version in found[name]["versions"])
    # Neither an ignored version nor one whose build failed is there.
    assert (repository / "library/2.0.0/package.py").exists()
    assert (repository / "imgtool/2.1.0").exists()
    assert not {"library/2.0.0", "imgtool/2.1.0"} & set(site.chosen("rez"))


def test_rez_finds_the_same_in_the_view(site: Site, repository: Path) -> None:
    on_root = site.found_by_rez(repository)
    del on_root["unversioned"]
    assert site.found_by_rez(site.shown / "rez") == on_root


def test_the_newest_release_in_the_order_rez_is_the_one_that_rez_says(site: Site, repository: Path) -> None:
    found = site.found_by_rez(repository)
    newest = {f"{name}/{one['newest']}" for name, one in found.items() if one["newest"]}
    assert set(site.chosen("rez-newest")) == newest
    assert "library/v3" not in newest


def test_rez_starts_a_program_of_a_hashed_variant_in_the_view(site: Site) -> None:
    view = site.shown / "rez"
    output = site.rez("rez-env", "imgtool", "python-3.9", "--", "imgtool", repository=view)
    assert re.search(rf"^{view}/imgtool/2\.0\.0/.+/bin/imgtool$", output, re.MULTILINE), output


def test_what_is_left_out_of_a_package_repository_is_counted_and_named(site: Site) -> None:
    [warning] = re.findall(r"release imgtool/2\.0\.0: .*?\(ignore_names\): [^\n]*", site.first_log)
    assert f"{len(JUNK)} files and directories" in warning
    assert all(f"/{name.partition('/')[0]}" in warning for name in JUNK)


# ---- conda


def test_packages_of_conda_are_chosen_by_name_and_version(site: Site) -> None:
    assert site.chosen("conda") == ["imgkit-1.2.0-pyhd8ed1ab_0", "ld_impl_linux-64-2.43-h712a8e2_2"]


@pytest.mark.parametrize(
    "view", ["conda/imgkit-1.2.0-pyhd8ed1ab_0", "environments/pipeline/1.0", "environments/pipeline/1.1"]
)
def test_a_program_in_a_prefix_starts_in_the_view(site: Site, view: str) -> None:
    # conda writes the prefix into the first lines of scripts.
    prefix = site.roots / view
    assert site.run(site.shown / view / "bin" / "imgkit").startswith(f"imgkit of {prefix}/lib/")


# ---- Spack


def test_prefixes_of_spack_are_chosen_by_name_and_version(site: Site) -> None:
    # Both builds of a version are there. A version may be a date, a pre-release or a branch.
    older = ("zlib-ng-2.2.1-", "ca-certificates-mozilla-2023-05-30-", "boost-1.87.0-beta1-")
    expected = [path for path in site.spack if not path.partition("/")[2].startswith(older)]
    assert site.chosen("spack") == sorted(expected)
    assert sum("/hdf5-1.14.5-" in path for path in expected) == 2


def test_a_prefix_that_spack_is_building_is_not_chosen(site: Site) -> None:
    [building] = (site.roots / "spack").glob("linux-*/zlib-ng-2.3.0-*")
    assert (building / spack_tree.SPEC).exists()
    assert str(building.relative_to(site.roots / "spack")) not in site.chosen("spack")


# ---- pip


def test_the_newest_release_in_the_order_pep440_is_the_one_that_packaging_says(site: Site) -> None:
    versions = []
    for directory in (site.roots / "python" / python_installs.NAME).iterdir():
        try:
            versions.append(Version(directory.name))
        except InvalidVersion:
            assert directory.name == "not-a-version"
    newest = max(version for version in versions if not version.is_prerelease)
    assert site.chosen("python") == [f"{python_installs.NAME}/{newest}", python_installs.PLUGINS]


def test_python_imports_from_the_view(site: Site) -> None:
    release = site.shown / "python" / python_installs.NAME / python_installs.TARGET
    program = f"import {python_installs.NAME} as it; print(it.__file__)"
    assert site.run(sys.executable, "-c", program, PYTHONPATH=str(release)).startswith(f"{release}/")


def test_a_link_that_hides_a_directory_is_warned_of_with_the_number_of_entries(site: Site) -> None:
    view = site.shown / "merged"
    assert (view / "lib64").readlink() == Path("lib")
    warning = f"/lib64 of {python_installs.PLUGINS} (4 entries), where {python_installs.NAME}/{python_installs.ENVIRONMENT} has"
    assert warning in site.first_log
