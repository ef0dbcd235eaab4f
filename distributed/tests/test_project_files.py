"""The files for contributors and services: their settings exist, and their links lead somewhere."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys

import pytest

from distributed.tests.environments import ROOT

yaml = pytest.importorskip("yaml")

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
SOURCE = "https://github.com/distributed-core/distributed-core"


def load(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_the_links_of_a_page_for_contributors_lead_to_files_or_the_project(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((.*?)\)|<(https://.*?)>", text)
    assert links
    for relative, absolute in links:
        link = relative or absolute
        known = link.startswith((SOURCE, SETUP["metadata"]["url"]))
        assert known or (ROOT / link).is_file(), link


def test_contributing_names_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert {"check", "demo", "packages", "pytest", "test", "test-newest"} <= named
    assert {verb for verb in named if not re.search(rf"^{verb}:", makefile, re.MULTILINE)} == set()


def test_each_issue_template_has_what_the_service_requires():
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [path.stem for path in templates] == ["config", "fault", "wish"]
    for path in templates:
        template = load(path)
        if path.stem == "config":  # links only
            assert all(
                {"name", "url", "about"} == link.keys() for link in template["contact_links"]
            )
            continue
        assert template["name"]
        assert template["description"]
        fields = [field for field in template["body"] if field["type"] != "markdown"]
        assert all(field["attributes"]["label"] for field in fields)
        assert len({field["id"] for field in fields}) == len(fields)


def test_read_the_docs_builds_these_pages_with_an_extra_that_exists():
    settings = load(".readthedocs.yaml")
    assert settings["version"] == 2
    assert settings["build"]["tools"]["python"] in SETUP["metadata"]["classifiers"]
    assert (ROOT / settings["sphinx"]["configuration"]).is_file()
    (installed,) = settings["python"]["install"]
    extras = SETUP["options.extras_require"]
    assert all(extra in extras for extra in installed["extra_requirements"])


def test_the_hooks_for_commits_pass():
    (local,) = load(".pre-commit-config.yaml")["repos"]
    hooks = {hook["id"]: hook for hook in local["hooks"]}
    assert hooks.keys() == {"ruff-check", "ruff-format", "plain-english"}
    for hook in hooks.values():
        program, *arguments = hook["entry"].split()
        if program == "python":
            assert (ROOT / arguments[0]).is_file()
            continue
        # As the hook, but without changing a file.
        pytest.importorskip(program)
        arguments = [argument for argument in arguments if argument != "--fix"]
        check = ["--check"] if hook["id"] == "ruff-format" else []
        command = [sys.executable, "-m", program, *arguments, *check, "scripts"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert run.returncode == 0, run.stdout + run.stderr


def test_each_extra_for_users_is_on_the_installing_page():
    extras = set(SETUP.options("options.extras_require")) - {"docs", "fuzz", "test"}
    page = (ROOT / "docs" / "how-to" / "installing.rst").read_text()
    assert set(re.findall(r"^   \* - ``(\w+)``$", page, re.MULTILINE)) == extras
