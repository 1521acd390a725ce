"""Turning resolved environments into releases."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.filter import conda_releases as conda_plugin
from ansible_collections.renderfarm.overlay.plugins.filter import rez_releases as rez_plugin
from ansible_collections.renderfarm.overlay.plugins.filter import spack_releases as spack_plugin
from ansible_collections.renderfarm.overlay.plugins.filter.conda_releases import conda_releases
from ansible_collections.renderfarm.overlay.plugins.filter.rez_releases import rez_releases
from ansible_collections.renderfarm.overlay.plugins.filter.spack_releases import spack_releases
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.tests.unit.tried import outcome

ENVIRONMENTS = Path(__file__).parent / "environments"
RXT = (ENVIRONMENTS / "dragon.rxt").read_text(encoding="utf-8")
LOCK = (ENVIRONMENTS / "spack.lock").read_text(encoding="utf-8")
VIEW = yaml.safe_load((ENVIRONMENTS / "spack.yaml").read_text(encoding="utf-8"))["spack"]["view"]["default"]
LISTED = (ENVIRONMENTS / "conda-list.json").read_text(encoding="utf-8")
CONDA_META = [path.read_text(encoding="utf-8") for path in sorted((ENVIRONMENTS / "conda-meta").glob("*.json"))]

ROOT = "/net/software"
HASHED = "{name}-{version}-{hash:7}"


def changed(text: str, change: Callable[[Any], Any]) -> Any:
    """Return a parsed environment that something was done to."""
    value = json.loads(text)
    change(value)
    return value


def removed(left_out: list[dict[str, str]]) -> dict[str, str]:
    return {one["package"]: one["reason"] for one in left_out}


# rez


def test_a_rez_context_gives_its_releases_in_the_order_of_the_resolve() -> None:
    expected = ["python/3.11.9", "usd/25.05", "houdini/20.5.410"]
    assert rez_releases(RXT, ROOT, exclude=["platform"]) == expected
    assert rez_releases(json.loads(RXT), ROOT, exclude="plat*") == expected
    assert rez_releases(RXT, ROOT + "/", left_out="ignore") == expected


def test_a_package_outside_of_the_root_is_named_with_its_repository() -> None:
    with pytest.raises(
        AnsibleFilterError, match=r"1 package has no release: platform linux .*'/net/local', .* outside of"
    ):
        rez_releases(RXT, ROOT)
    assert removed(rez_releases(RXT, ROOT, left_out="return")) == {
        ".feature.denoise-1": "is an ephemeral package, which has no files",
        "platform": "is in the repository '/net/local', which is outside of '/net/software'",
    }


def test_a_repository_below_the_root_is_part_of_the_path() -> None:
    assert rez_releases(RXT, "/net") == [
        "local/platform/linux",
        "software/python/3.11.9",
        "software/usd/25.05",
        "software/houdini/20.5.410",
    ]


def test_at_makes_dictionaries_as_a_view_takes_them() -> None:
    merged = rez_releases(RXT, ROOT, exclude=["platform", "python"], at="/")
    assert merged == [{"release": "usd/25.05", "at": "/"}, {"release": "houdini/20.5.410", "at": "/"}]
    assert rez_releases(RXT, ROOT, exclude=["p*", "usd"], at="apps/{package}") == [
        {"release": "houdini/20.5.410", "at": "apps/houdini"}
    ]


@pytest.mark.parametrize("version", [None, ""])
def test_a_package_without_a_version_has_no_release(version: str | None) -> None:
    context = changed(RXT, lambda value: value["resolved_packages"][1]["variables"].update(version=version))
    assert removed(rez_releases(context, "/net", left_out="return"))["python"] == "has no version"


def test_a_repository_in_memory_has_no_releases() -> None:
    def change(value: Any) -> None:
        value["resolved_packages"][1]["variables"].update(repository_type="memory", location="140")

    assert "type 'memory'" in removed(rez_releases(changed(RXT, change), ROOT, left_out="return"))["python"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.pop("status"), "the rez context has no key 'status'"),
        (lambda value: value.update(status="failed"), "is 'failed', not 'solved'"),
        (lambda value: value.update(status="failed", failure_description="a <--> b"), "rez says: a <--> b"),
        (lambda value: value.pop("resolved_packages"), "has no key 'resolved_packages'"),
        (lambda value: value.update(resolved_packages=None), "resolved_packages must be a list, not null"),
        (
            lambda value: value["resolved_packages"].append("usd-25"),
            r"resolved_packages\[4\] must be a mapping, not text",
        ),
        (lambda value: value["resolved_packages"].append({}), r"resolved_packages\[4\] has no key 'variables'"),
        (
            lambda value: value["resolved_packages"][0]["variables"].pop("name"),
            r"resolved_packages\[0\]\.variables has no key 'name'",
        ),
        (
            lambda value: value["resolved_packages"][0]["variables"].update(version=3.11),
            r"resolved_packages\[0\]\.variables\.version must be text, not a number",
        ),
        (lambda value: value.update(resolved_ephemerals=[""]), r"resolved_ephemerals\[0\] is empty"),
    ],
)
def test_a_malformed_rez_context_is_refused_by_the_key(change: Callable[[Any], Any], reason: str) -> None:
    with pytest.raises(AnsibleFilterError, match=rf"^renderfarm\.overlay\.rez_releases: .*{reason}"):
        rez_releases(changed(RXT, change), ROOT)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"root": "software"}, "root must be an absolute path, not 'software'"),
        ({"root": None}, "root must be text, not null"),
        ({"left_out": "warn"}, "left_out must be 'fail', 'ignore' or 'return', not 'warn'"),
        ({"pattern": "{package}/{hash}"}, r"unknown field \{hash\}; the fields are \{package\}, \{version\}"),
        ({"pattern": "{package}/{version"}, "brace that does not belong to a field"),
        ({"pattern": ""}, "pattern is empty"),
        ({"pattern": 1}, "pattern must be text, not a number"),
        ({"pattern": "sw"}, r"python 3\.11\.9 and usd 25\.05 have one path, 'software/sw'"),
        ({"pattern": "../{package}"}, "pattern .* gives no path for platform linux: .* without '..'"),
        ({"pattern": "{package}//{version}"}, "gives no path"),
        ({"at": "{package}/../x"}, "at .* gives no path"),
        ({"exclude": [1]}, r"exclude\[0\] must be text"),
        ({"exclude": {"a": 1}}, "exclude must be a list"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(AnsibleFilterError, match=reason):
        rez_releases(RXT, **{"root": "/net", **options})


def test_a_name_that_is_no_part_of_a_path_is_refused() -> None:
    context = changed(RXT, lambda value: value["resolved_packages"][1]["variables"].update(name="../../etc"))
    with pytest.raises(AnsibleFilterError, match=r"package of ../../etc 3.11.9 has a slash"):
        rez_releases(context, "/net")


# Spack


def test_a_lock_file_gives_the_roots_and_then_what_they_need() -> None:
    releases = spack_releases(LOCK, HASHED, exclude=["glibc"])
    assert releases == [
        "openexr-3.3.2-ynknijy",
        "python-3.11.9-cgskmc2",
        "gcc-runtime-13.3.0-cgfoqzm",
        "imath-3.1.12-nqz6iob",
        "libdeflate-1.22-6avtoll",
        "zlib-ng-2.2.1-dpecnut",
    ]
    assert spack_releases(json.loads(LOCK), HASHED, exclude=["glibc"]) == releases


def test_an_external_package_has_no_release() -> None:
    with pytest.raises(AnsibleFilterError, match=r"glibc 2.36 is external, at '/usr'"):
        spack_releases(LOCK)
    reasons = removed(spack_releases(LOCK, left_out="return"))
    assert reasons["cmake"] == "is not needed with link: all"
    assert set(reasons) == {"glibc", "gcc", "cmake", "gmake", "compiler-wrapper"}


@pytest.mark.parametrize(
    ("link", "releases"),
    [("run", ["openexr", "python"]), ("roots", ["openexr", "python"])],
)
def test_link_chooses_which_dependencies_are_shown(link: str, releases: list[str]) -> None:
    assert spack_releases(LOCK, "{name}", link=link) == releases


def test_a_pattern_may_be_a_projection_of_spack() -> None:
    pattern = "{architecture}/{compiler.name}-{compiler.version}/{namespace}.{name}-{version}"
    assert spack_releases(LOCK, pattern, link="roots")[0] == "linux-debian12-x86_64_v3/gcc-13.3.0/builtin.openexr-3.3.2"
    with pytest.raises(
        AnsibleFilterError, match=r"needs \{compiler.name\}, which gcc-runtime 13.3.0 \(\w{7}\) does not have"
    ):
        spack_releases(LOCK, "{compiler.name}/{name}", exclude=["glibc"])


def test_a_view_of_spack_says_what_is_shown_and_where() -> None:
    assert spack_releases(LOCK, HASHED, view=VIEW, exclude=["glibc"]) == [
        {"release": "openexr-3.3.2-ynknijy", "at": "openexr/3.3.2"},
        {"release": "python-3.11.9-cgskmc2", "at": "languages/python-3.11.9"},
        {"release": "imath-3.1.12-nqz6iob", "at": "imath/3.1.12"},
        {"release": "libdeflate-1.22-6avtoll", "at": "libdeflate/1.22"},
        {"release": "zlib-ng-2.2.1-dpecnut", "at": "zlib-ng/2.2.1"},
    ]
    assert removed(spack_releases(LOCK, view=VIEW, left_out="return"))["gcc-runtime"] == "is excluded by the view"


@pytest.mark.parametrize("view", [True, "/opt/tools", {}])
def test_a_view_without_projections_merges_at_its_root(view: Any) -> None:
    releases = spack_releases(LOCK, "{name}", view=view, left_out="ignore")
    assert {"release": "python", "at": "/"} in releases
    assert len(releases) == 6


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("python", ["python"]),
        ("python@3", ["python"]),
        ("python@3.11", ["python"]),
        ("python@3.1", []),
        ("python@=3.11.9", ["python"]),
        ("python@=3.11", []),
        ("python@3.12:", []),
        ("python@3.9:3.11", ["python"]),
        ("python@:3.10,3.11.9", ["python"]),
        ("python@:develop", ["python"]),
        ("python@main:", []),
        ("@3.11", ["python"]),
        ("%gcc", ["openexr", "python", "imath", "libdeflate", "zlib-ng"]),
        ("python %gcc@13", ["python"]),
        ("python %gcc@14:", []),
        ("python%clang", []),
        ("^zlib-api", ["python"]),
        ("^zlib-ng@2.2", ["python"]),
        ("^zlib-ng@3:", []),
        ("^imath ^libdeflate", ["openexr"]),
        ("^cmake", []),
    ],
)
def test_specs_choose_packages_of_a_lock_file(spec: str, names: list[str]) -> None:
    assert [
        one["release"] for one in spack_releases(LOCK, "{name}", view={"select": [spec]}, exclude=["glibc"])
    ] == names


@pytest.mark.parametrize("spec", ["hdf5+mpi", "hdf5 ~mpi", "hdf5 target=zen3", "/abcdef", "a b", "%gcc %clang", "", 1])
def test_specs_that_need_more_than_names_and_versions_are_refused(spec: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"view\.select\[0\]"):
        spack_releases(LOCK, view={"select": [spec]})


def test_two_packages_with_one_path_are_refused() -> None:
    def change(value: Any) -> None:
        specs = value["concrete_specs"]
        root = copy.deepcopy(specs[value["roots"][1]["hash"]])
        specs["a" * 32] = root
        value["roots"].append({"hash": "a" * 32, "spec": "python+debug"})

    lock = changed(LOCK, change)
    with pytest.raises(
        AnsibleFilterError, match=r"python 3.11.9 \(cgskmc2\) and python 3.11.9 \(aaaaaaa\) have one path"
    ):
        spack_releases(lock, exclude=["glibc"])
    assert "python-3.11.9-aaaaaaa" in spack_releases(lock, HASHED, exclude=["glibc"])


def test_lock_files_before_spack_1_0_name_the_compiler_in_the_package() -> None:
    def change(value: Any) -> None:
        value["_meta"]["lockfile-version"] = 4
        for spec in value["concrete_specs"].values():
            spec["compiler"] = {"name": "clang", "version": "17.0.6"}
            for dependency in spec.get("dependencies", ()):
                dependency["type"] = dependency.pop("parameters")["deptypes"]

    releases = spack_releases(changed(LOCK, change), "{compiler.name}/{name}", exclude=["glibc"])
    assert releases[:2] == ["clang/openexr", "clang/python"]
    assert len(releases) == 6


def test_included_environments_count() -> None:
    inner = json.loads(LOCK)

    def change(value: Any) -> None:
        python = value["roots"].pop(1)
        value["include_concrete"] = {"/env/base": {"roots": [python], "concrete_specs": inner["concrete_specs"]}}
        del value["concrete_specs"][python["hash"]]

    assert spack_releases(changed(LOCK, change), "{name}", exclude=["glibc"]) == spack_releases(
        LOCK, "{name}", exclude=["glibc"]
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.pop("_meta"), "has no key '_meta'"),
        (lambda value: value["_meta"].update({"lockfile-version": 3}), "_meta.lockfile-version is 3, and 4"),
        (lambda value: value["_meta"].update({"lockfile-version": "6"}), "_meta.lockfile-version is '6'"),
        (lambda value: value.pop("roots"), "has no key 'roots'"),
        (lambda value: value.update(roots={}), "roots must be a list"),
        (lambda value: value["roots"].append({"spec": "x"}), r"roots\[2\] has no key 'hash'"),
        (
            lambda value: value["roots"].append({"hash": "x"}),
            "roots has the hash 'x', which concrete_specs does not have",
        ),
        (lambda value: value["concrete_specs"].update(x=[]), "concrete_specs.x must be a mapping, not a list"),
        (lambda value: value["concrete_specs"].update(x={}), "concrete_specs.x has no key 'name'"),
        (
            lambda value: next(iter(value["concrete_specs"].values())).pop("version"),
            r"concrete_specs\.\w+ has no key 'version'",
        ),
        (
            lambda value: next(iter(value["concrete_specs"].values()))["arch"].update(target={}),
            r"concrete_specs\.\w+\.arch\.target has no key 'name'",
        ),
        (
            lambda value: next(iter(value["concrete_specs"].values()))["dependencies"][0].pop("hash"),
            r"concrete_specs\.\w+\.dependencies\[0\] has no key 'hash'",
        ),
        (
            lambda value: next(iter(value["concrete_specs"].values()))["dependencies"][0].update(hash="x"),
            r"concrete_specs\.\w+\.dependencies has the hash 'x'",
        ),
        (lambda value: value.update(include_concrete={"/e": []}), "include_concrete./e must be a mapping"),
        (lambda value: value.update(include_concrete={"/e": {}}), "include_concrete./e has no key 'roots'"),
    ],
)
def test_a_malformed_lock_file_is_refused_by_the_key(change: Callable[[Any], Any], reason: str) -> None:
    with pytest.raises(AnsibleFilterError, match=rf"^renderfarm\.overlay\.spack_releases: .*{reason}"):
        spack_releases(changed(LOCK, change))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"link": "build"}, "link must be one of all, run, roots, not 'build'"),
        ({"link": []}, "link must be one of"),
        ({"view": {"link": "some"}}, "link must be one of all, run, roots, not 'some'"),
        ({"view": {"default": {}}}, "view has the unknown key 'default'.*give one of them"),
        ({"view": False}, "view must be a mapping, not true or false"),
        ({"view": {"projections": {"all": "{nme}"}}}, r"view\.projections\.all '\{nme\}' has the unknown field"),
        ({"view": {}, "at": "/"}, "at and view must not be given together"),
    ],
)
def test_a_wrong_option_of_spack_is_refused_by_its_name(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(AnsibleFilterError, match=reason):
        spack_releases(LOCK, **options)


# conda


def test_a_conda_list_and_the_records_in_conda_meta_give_the_same_releases() -> None:
    expected = ["imath/3.1.12", "ocio-configs/2.1.0", "openexr/3.3.2"]
    assert conda_releases(LISTED) == expected
    assert conda_releases(json.loads(LISTED)) == expected
    assert conda_releases(CONDA_META) == expected
    assert conda_releases([json.loads(record) for record in CONDA_META]) == expected


def test_the_fields_of_conda_come_from_either_format() -> None:
    expected = [
        "linux-64/imath-3.1.12-h7955e40_0",
        "noarch/ocio-configs-2.1.0-hd8ed1ab_1",
        "linux-64/openexr-3.3.2-h09bb8a1_0",
    ]
    assert conda_releases(LISTED, "{subdir}/{dist_name}") == expected
    assert conda_releases(CONDA_META, "{subdir}/{name}-{version}-{build}") == expected


def test_what_pip_installed_has_no_release() -> None:
    record = {"name": "rich", "version": "13.9.4", "build_string": "pypi_0", "channel": "pypi", "platform": "pypi"}
    packages = [*json.loads(LISTED), record]
    with pytest.raises(AnsibleFilterError, match=r"1 package has no release: rich 13.9.4 was installed by pip"):
        conda_releases(packages)
    assert conda_releases(packages, exclude=["rich"]) == conda_releases(LISTED)
    assert removed(conda_releases(packages, left_out="return")) == {"rich": "was installed by pip and not by conda"}


def test_a_long_list_of_packages_without_a_release_is_cut() -> None:
    packages = [{"name": f"p{number}", "version": "1", "channel": "pypi"} for number in range(30)]
    with pytest.raises(AnsibleFilterError, match=r"30 packages have no release: p0 1 .*; p19 1 [^;]*; and 10 more"):
        conda_releases(packages)


@pytest.mark.parametrize(
    ("packages", "reason"),
    [
        ("", "the list of conda packages is not JSON"),
        ("[", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ({"name": "x"}, "must be a list, as conda list --json prints it"),
        (None, "must be a list, not null"),
        (["x"], r"packages\[0\] is not JSON"),
        ([1], r"packages\[0\] must be a mapping, not a number"),
        ([{"version": "1"}], r"packages\[0\] has no key 'name'"),
        ([{"name": "x", "version": 1}], r"packages\[0\]\.version must be text, not a number"),
        ([{"name": "x", "version": "1", "build": 3}], r"packages\[0\]\.build must be text"),
    ],
)
def test_a_malformed_conda_list_is_refused_by_the_key(packages: Any, reason: str) -> None:
    with pytest.raises(AnsibleFilterError, match=rf"^renderfarm\.overlay\.conda_releases: .*{reason}"):
        conda_releases(packages)


def test_a_field_that_a_record_does_not_have_is_named() -> None:
    with pytest.raises(AnsibleFilterError, match=r"needs \{build\}, which x 1 does not have"):
        conda_releases([{"name": "x", "version": "1"}], "{name}/{build}")


# All of them


def test_the_filters_have_their_names() -> None:
    for plugin, name in (
        (rez_plugin, "rez_releases"),
        (spack_plugin, "spack_releases"),
        (conda_plugin, "conda_releases"),
    ):
        assert plugin.FilterModule().filters() == {name: getattr(plugin, name)}


class Text(str):
    """As Ansible's own kinds of text, which say where a value comes from."""

    __slots__ = ()


def test_releases_are_plain_text_whatever_the_input_is_made_of() -> None:
    packages = [
        {Text(key): Text(value) if isinstance(value, str) else value for key, value in one.items()}
        for one in json.loads(LISTED)
    ]
    releases = conda_releases(packages, Text("{package}"), at=Text("/"))
    assert {type(value) for one in releases for value in one.values()} == {str}


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(
            ["", ".", "..", "/", "a/b", "\0", "\ud800", "x" * 5000, "solved", "/net/software", "pypi", "{", "{hash:7}"]
        ),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any) -> list[list[Any]]:
    """Return where something is in a JSON value: the keys that lead there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[], *([key, *rest] for key, part in items for rest in places(part))]


PLACES = {text: places(json.loads(text)) for text in (RXT, LOCK, LISTED)}


@st.composite
def altered(draw: st.DrawFn, text: str) -> Any:
    """Return an environment in which some values are replaced or removed, or another value altogether."""
    value: Any = json.loads(text)
    for _time in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(PLACES[text]))
        if not path:
            return draw(VALUES)
        holder = value
        for key in path[:-1]:
            try:
                holder = holder[key]
            except (LookupError, TypeError):
                break
        if isinstance(holder, dict):
            if draw(st.booleans()):
                holder[path[-1]] = draw(VALUES)
            else:
                holder.pop(path[-1], None)
        elif isinstance(holder, list) and isinstance(path[-1], int) and path[-1] < len(holder):
            holder[path[-1]] = draw(VALUES)
    return value


def mostly(*sound: Any) -> st.SearchStrategy[Any]:
    """Draw a sound value three times out of four, and any value otherwise."""
    return st.integers(0, 3).flatmap(lambda number: st.sampled_from(sound) if number else VALUES)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "pattern": mostly("{package}", "{package}-{version}", "sw/{package}", "{package}/{version}/{hash}"),
        "at": mostly(None, "/", "{package}"),
        "exclude": mostly(["glibc"], "platform", []),
        "left_out": mostly("ignore", "ignore", "return", "fail"),
    },
)
SPECS = st.one_of(mostly("python", "^imath", "%gcc@13", "@3:"), st.text("a@%^:=.1 ,-", max_size=10))
VIEWS = st.one_of(
    mostly(None, True),
    st.fixed_dictionaries(
        {},
        optional={
            "select": st.lists(SPECS, max_size=3),
            "exclude": st.lists(SPECS, max_size=3),
            "projections": st.dictionaries(
                st.one_of(st.sampled_from(["all", "^imath"]), st.text("a@%^:. ", max_size=8)),
                mostly("{name}", "x"),
                max_size=2,
            ),
            "link": mostly("all", "run", "roots"),
        },
    ),
)
is_path = records.relative()
hostile = settings(
    settings.get_profile("hostile"), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def is_sound(call: Callable[[], list[Any]], options: dict[str, Any], name: str) -> None:
    """Check that a filter refuses its input in words, or returns what a view takes."""

    def read() -> list[Any]:
        try:
            return call()
        except AnsibleFilterError as error:
            raise OverlayError(str(error)) from None

    result = outcome(name, read)
    if result is None:
        return
    json.dumps(result)
    if options.get("left_out") == "return":
        assert all(set(one) == {"package", "version", "reason"} and one["reason"] for one in result)
        return
    paths = [one if isinstance(one, str) else one["release"] for one in result]
    assert len(set(paths)) == len(paths)
    for one in result:
        assert is_path(one if isinstance(one, str) else one["release"]) is None
        assert isinstance(one, str) or (
            set(one) == {"release", "at"} and (one["at"] == "/" or is_path(one["at"]) is None)
        )


@hostile
@given(altered(RXT), mostly("/", "/net", ROOT), OPTIONS)
def test_any_rez_context_is_refused_in_words_or_gives_sound_releases(
    context: Any, root: Any, options: dict[str, Any]
) -> None:
    is_sound(lambda: rez_releases(context, root, **options), options, "rez context")


@hostile
@given(altered(LOCK), VIEWS, OPTIONS)
def test_any_lock_file_is_refused_in_words_or_gives_sound_releases(
    lock: Any, view: Any, options: dict[str, Any]
) -> None:
    options = {"left_out": "ignore", **options, "at": None if view else options.get("at")}
    is_sound(lambda: spack_releases(lock, view=view, **options), options, "Spack lock file")


@hostile
@given(altered(LISTED), OPTIONS)
def test_any_conda_list_is_refused_in_words_or_gives_sound_releases(packages: Any, options: dict[str, Any]) -> None:
    is_sound(lambda: conda_releases(packages, **options), options, "conda list")
