"""The section ``logging`` of the configuration, and programs that configure logging themselves."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from pathlib import Path

import pytest

from distributed.base import config_store, log_setup
from distributed.base.log_setup import DEFAULT_FORMAT, DEFAULT_LEVELS, initialize_logging
from distributed.tests.environments import ROOT, run_in

#: Log lines of several loggers and levels.
LINES = """
from distributed.base.logs import get_logger
import logging
for name in ("distributed.core", "distributed.client", "tornado.general", "tornado.application"):
    logger = get_logger(name) if name.startswith("distributed") else logging.getLogger(name)
    for level in ("debug", "info", "warning", "error"):
        getattr(logger, level)("said %s", level)
"""

#: What the defaults let through, as "logger LEVEL".
DEFAULT = [
    "distributed.core INFO",
    "distributed.core WARNING",
    "distributed.core ERROR",
    "distributed.client WARNING",
    "distributed.client ERROR",
    "tornado.application ERROR",
]
ALL_WARNINGS = [
    f"{name} {level}"
    for name in (
        "distributed.core",
        "distributed.client",
        "tornado.general",
        "tornado.application",
    )
    for level in ("WARNING", "ERROR")
]


def run(code, home, options=("-Werror",), **env):
    """Run code in a new process, and return what it has written to the standard error."""
    env = {"PYTHONPATH": str(ROOT), "HOME": str(home), "DASK_ROOT_CONFIG": str(home), **env}
    return run_in(Path(sys.executable), code, env=env, options=options).stderr


def in_default_format(text):
    """Return lines in the default format as "logger LEVEL"."""
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    found = [re.fullmatch(rf"{time} - (\S+) - ([A-Z]+) - said \w+", x) for x in text.splitlines()]
    assert None not in found, text
    return [f"{match[1]} {match[2]}" for match in found]


@contextlib.contextmanager
def as_at_start():
    """Let the loggers be as in a new process for the block; yield a function that shows a level.

    Not a fixture: pytest adds its own handlers to the root logger after the fixtures.
    """
    names = ["root", *DEFAULT_LEVELS, "distributed.core", "some.program", "another"]
    known = [logging.getLogger(name) for name in names]
    before = [(each.level, each.handlers[:], each.disabled) for each in known]
    applied = dict(log_setup._loggers)
    log_setup._reset()
    for each in known:
        each.handlers[:] = []
        each.setLevel(logging.WARNING if each is logging.root else logging.NOTSET)
    try:
        yield lambda name: logging.getLevelName(logging.getLogger(name).level)
    finally:
        log_setup._reset()
        for each, (level, handlers, disabled) in zip(known, before, strict=True):
            each.setLevel(level)
            each.handlers[:] = handlers
            each.disabled = disabled
        log_setup._loggers.update(applied)


def handlers_of(*names):
    return [handler for name in names for handler in logging.getLogger(name).handlers]


# The import


def test_the_import_applies_the_defaults_of_the_original(tmp_path):
    assert in_default_format(run(f"import distributed\n{LINES}", tmp_path)) == DEFAULT


def test_the_default_levels_and_the_format_are_those_of_the_original(original_python, tmp_path):
    names = [*DEFAULT_LEVELS, "root", "distributed.core", "tornado.general", "asyncio"]
    code = f"""
        import json, logging, sys, distributed
        loggers = [logging.getLogger(name) for name in {names}]
        formats = [each.formatter._fmt for logger in loggers for each in logger.handlers]
        print(json.dumps([[each.level for each in loggers], sorted(set(formats))]))
    """
    ours = run_in(Path(sys.executable), code, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)})
    theirs = run_in(original_python, code, env={"HOME": str(tmp_path)})
    assert json.loads(ours.stdout) == json.loads(theirs.stdout)
    lines = f"import distributed\n{LINES.replace('distributed.base.logs', 'distributed.utils')}"
    lines = lines.replace("import get_logger", "import logging")
    lines = lines.replace("get_logger(name) if", "logging.getLogger(name) if")
    assert in_default_format(run_in(original_python, lines).stderr) == DEFAULT


def test_the_environment_sets_a_level(tmp_path):
    lines = run(f"import distributed\n{LINES}", tmp_path, DASK_LOGGING__DISTRIBUTED="debug")
    assert in_default_format(lines) == ["distributed.core DEBUG", *DEFAULT]


def test_a_file_sets_levels_and_the_format(tmp_path):
    settings = {
        "logging": {"distributed.core": "error", "tornado": "warning"},
        "distributed": {"admin": {"log-format": "%(levelname)s of %(name)s"}},
    }
    (tmp_path / "logs.json").write_text(json.dumps(settings))
    lines = run(f"import distributed\n{LINES}", tmp_path).splitlines()
    assert lines == [
        "ERROR of distributed.core",
        "WARNING of distributed.client",
        "ERROR of distributed.client",
        "WARNING of tornado.general",
        "ERROR of tornado.general",
        "ERROR of tornado.application",
    ]


def test_the_import_uses_what_dask_was_told_before(dask_python, tmp_path):
    code = "import dask.config\ndask.config.set({'logging.distributed': 'error'})\n"
    lines = run_in(dask_python, f"{code}import distributed\n{LINES}", env={"HOME": str(tmp_path)})
    assert in_default_format(lines.stderr) == [
        line
        for line in DEFAULT
        if line not in ("distributed.core INFO", "distributed.core WARNING")
    ]


def test_the_import_reads_no_file_and_loads_no_library_if_nothing_mentions_logging(tmp_path):
    (tmp_path / "broken.json").write_text("{'distributed': ")
    (tmp_path / "some.yaml").write_text("distributed: {comm: {shard: 1MiB}}")
    code = """
        import sys, distributed
        print([name for name in ("yaml", "dask", "logging.config", "distributed.base.json_lines")
               if name in sys.modules], file=sys.stderr)
    """
    assert run(code, tmp_path) == "[]\n"


def test_a_bad_level_is_an_error_of_the_import(tmp_path):
    code = """
        import sys
        try:
            import distributed
        except ValueError as exc:
            print(exc, file=sys.stderr)
    """
    (tmp_path / "logs.json").write_text('{"logging": {"distributed.core": "loud"}}')
    text = run(code, tmp_path)
    assert "key 'logging.distributed.core' is 'loud'" in text
    assert f"(from file '{tmp_path / 'logs.json'}')" in text
    assert "debug, info, warning" in text


# Applications that configure logging


CONFIGURE = {
    "basicConfig": "logging.basicConfig(format='app %(name)s %(levelname)s')",
    "dictConfig": """
from logging.config import dictConfig
dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"app": {"format": "app %(name)s %(levelname)s"}},
    "handlers": {"app": {"class": "logging.StreamHandler", "formatter": "app"}},
    "root": {"handlers": ["app"]},
})""",
}


@pytest.mark.parametrize("how", CONFIGURE)
@pytest.mark.parametrize("order", ["before", "after", "after a line"])
def test_an_application_gets_each_line_once_and_at_its_own_level(how, order, tmp_path):
    line = "from distributed.base.logs import get_logger; get_logger('distributed').error('said x')"
    parts = {
        "before": [CONFIGURE[how], "import distributed"],
        "after": ["import distributed", CONFIGURE[how]],
        "after a line": [line, CONFIGURE[how]],
    }
    text = run("\n".join(["import logging", *parts[order], LINES]), tmp_path)
    if order == "after a line":
        first, _, text = text.partition("\n")
        assert in_default_format(first) == ["distributed ERROR"]
    assert text.splitlines() == [f"app {line}" for line in ALL_WARNINGS]


def test_an_application_that_disables_existing_loggers_gets_none_of_their_lines(tmp_path):
    code = CONFIGURE["dictConfig"].replace("False", "True")
    line = "from distributed.base.logs import get_logger; logger = get_logger('distributed.core')"
    text = run("\n".join([line, code, "logger.error('said x')"]), tmp_path)
    assert text == ""


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_handler_of_the_application_for_this_package_gets_each_line_once(order, tmp_path):
    own = """
import logging
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("app %(name)s %(levelname)s"))
logging.getLogger("distributed").addHandler(handler)
"""
    parts = [own, "import distributed"]
    text = run("\n".join([*(parts if order == "before" else parts[::-1]), LINES]), tmp_path)
    lines = text.splitlines()
    assert [x.removeprefix("app ") for x in lines if x.startswith("app ")] == DEFAULT[:-1]
    assert (
        in_default_format("\n".join(x for x in lines if not x.startswith("app "))) == (DEFAULT[-1:])
    )


def test_a_level_that_the_application_has_set_stays(tmp_path):
    for order in ("import distributed;{}", "{};import distributed"):
        code = order.format("import logging;logging.getLogger('distributed').setLevel('ERROR')")
        lines = in_default_format(run(f"{code}\n{LINES}", tmp_path))
        assert "distributed.core ERROR" in lines
        assert "distributed.core WARNING" not in lines


def test_a_configured_level_holds_for_the_handlers_of_the_application(tmp_path):
    code = f"import logging, distributed\n{CONFIGURE['basicConfig']}\n{LINES}"
    text = run(code, tmp_path, DASK_LOGGING__DISTRIBUTED="info")
    lines = [line for line in text.splitlines() if "INFO" not in line]
    assert lines == [f"app {line}" for line in ALL_WARNINGS]
    assert (
        text.count("INFO") == text.count("distributed.core INFO") + text.count("client INFO") == 2
    )


def test_the_fixture_of_pytest_gets_lines_although_the_import_came_first(tmp_path):
    (tmp_path / "test_it.py").write_text("""
import logging
from distributed.base.logs import get_logger

def test_it(caplog):
    with caplog.at_level(logging.INFO, logger="distributed"):
        get_logger("distributed.core").info("said %s", "a")
    get_logger("distributed.core").info("said %s", "b")
    get_logger("distributed.core").warning("said %s", "c")
    assert [record.getMessage() for record in caplog.records] == ["said a", "said c"]
""")
    arguments = ["-m", "pytest", "-q", "-p", "distributed.utils_test", "-p", "no:cacheprovider"]
    env = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = run_in(
        Path(sys.executable), [*arguments, "--rootdir=.", "test_it.py"], env=env, cwd=tmp_path
    )
    assert "1 passed" in done.stdout
    assert done.stderr == ""


# The section


@pytest.mark.parametrize(
    ("section", "level"),
    [
        ({"distributed": "debug"}, "DEBUG"),
        ({"distributed": "Warning"}, "WARNING"),
        ({"distributed": 10}, "DEBUG"),
        ({"distributed": "fatal"}, "CRITICAL"),
        ({"distributed": "notset"}, "NOTSET"),
        ({}, "INFO"),
        (None, "INFO"),
    ],
)
def test_levels_are_names_in_any_case_or_numbers(section, level):
    with as_at_start() as loggers:
        initialize_logging({"logging": section})
        assert loggers("distributed") == level
        assert loggers("distributed.client") == "WARNING"
        assert loggers("tornado") == "CRITICAL"


def test_names_of_loggers_may_be_sections():
    with as_at_start() as loggers:
        initialize_logging({"logging": {"some": {"program": "debug"}, "another": "error"}})
        assert (loggers("some.program"), loggers("another")) == ("DEBUG", "ERROR")
        assert len(handlers_of("some.program", "another")) == 2


def test_a_section_below_distributed_replaces_the_other():
    with as_at_start() as loggers:
        settings = {
            "logging": {"some.program": "debug"},
            "distributed": {"logging": {"another": 10}},
        }
        initialize_logging(settings)
        assert (loggers("some.program"), loggers("another")) == ("NOTSET", "DEBUG")


def test_each_line_has_one_handler_however_often_it_is_initialized(capsys):
    with as_at_start() as loggers:
        for _ in range(3):
            initialize_logging({"logging": {"distributed": "info", "distributed.core": "debug"}})
        assert len(handlers_of("distributed", "distributed.core", "distributed.client")) == 1
        logging.getLogger("distributed.core").debug("said x")
        assert in_default_format(capsys.readouterr().err) == ["distributed.core DEBUG"]
        initialize_logging({"logging": {"root": "debug"}})
        assert len(handlers_of("root", *DEFAULT_LEVELS)) == 1
        logging.getLogger("another").debug("said x")
        assert in_default_format(capsys.readouterr().err) == ["another DEBUG"]
        initialize_logging({})
        assert loggers("root") == "WARNING"
        assert loggers("distributed.core") == "NOTSET"


def test_the_level_of_the_caller_replaces_the_configured_one():
    with as_at_start() as loggers:
        settings = {"logging": {"distributed": "error", "another": "error"}}
        initialize_logging(settings, level="debug")
        assert (loggers("distributed"), loggers("another")) == ("DEBUG", "ERROR")
        assert loggers("distributed.client") == "NOTSET"
        initialize_logging({"logging": {"version": 1, "incremental": True}}, level=30)
        assert loggers("distributed") == "WARNING"
        with pytest.raises(
            ValueError, match="the level of the logs is 'loud', which is not a level"
        ):
            initialize_logging({}, level="loud")


def test_a_section_with_a_version_is_for_dictconfig(capsys):
    with as_at_start() as loggers:
        settings = {
            "logging": {
                "version": 1,
                "formatters": {"own": {"format": "own %(message)s"}},
                "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
                "loggers": {"another": {"level": "INFO", "handlers": ["own"]}},
            }
        }
        logging.getLogger("distributed.core")
        initialize_logging(settings)
        assert loggers("another") == "INFO"
        logging.getLogger("another").info("said x")
        assert capsys.readouterr().err == "own said x\n"
        # It existed before the configuration was applied, other than with the original.
        assert not logging.getLogger("distributed.core").disabled
        assert handlers_of(*DEFAULT_LEVELS) == []


@pytest.mark.parametrize("key", ["logging-file-config", "logging_file_config"])
def test_a_file_for_fileconfig_is_applied(tmp_path, key):
    with as_at_start() as loggers:
        path = tmp_path / "logging.ini"
        path.write_text(
            "[loggers]\nkeys=root,another\n[handlers]\nkeys=\n[formatters]\nkeys=\n"
            "[logger_root]\nhandlers=\n[logger_another]\nlevel=ERROR\nqualname=another\nhandlers=\n"
        )
        initialize_logging({key: str(path)})
        assert loggers("another") == "ERROR"
        assert not logging.getLogger("distributed.core").disabled


# Errors


@pytest.mark.parametrize(
    ("settings", "error", "texts"),
    [
        ({"logging": {"a.b": "loud"}}, ValueError, ["key 'logging.a.b' is 'loud'", "a level"]),
        ({"logging": {"a": {"b": 1.5}}}, ValueError, ["key 'logging.a.b' is 1.5", "a level"]),
        ({"logging": {"a": True}}, ValueError, ["key 'logging.a' is True", "a level"]),
        ({"logging": {"a": None}}, ValueError, ["key 'logging.a' is None", "a level"]),
        ({"logging": {"a": -1}}, ValueError, ["key 'logging.a' is -1", "a level"]),
        ({"logging": "debug"}, ValueError, ["key 'logging' is 'debug'", "not a section"]),
        (
            {"distributed": {"logging": {"a": "x"}}},
            ValueError,
            ["key 'distributed.logging.a' is 'x'"],
        ),
        (
            {"logging": {"a": "info"}, "logging-file-config": "x"},
            RuntimeError,
            ["'logging'", "'logging-file-config'", "mutually exclusive"],
        ),
        (
            {"logging-file-config": "/does/not/exist.ini"},
            FileNotFoundError,
            ["key 'logging-file-config' is '/does/not/exist.ini'", "does not exist"],
        ),
        ({"logging-file-config": 5}, ValueError, ["key 'logging-file-config' is 5", "the path"]),
        (
            {"logging-file-config": __file__},
            ValueError,
            ["key 'logging-file-config'", "not a valid file for logging.config.fileConfig"],
        ),
        ({"logging": {"version": 2}}, ValueError, ["key 'logging'", "dictConfig", "version"]),
        (
            {"logging": {"version": 1, "handlers": {"h": {"class": "no.such.Handler"}}}},
            ValueError,
            ["key 'logging'", "Unable to configure handler 'h'", "no.such.Handler"],
        ),
        (
            {"logging": {"version": 1, "distributed": "debug"}},
            ValueError,
            ["key 'logging.distributed'", "'logging.loggers'"],
        ),
        (
            {"distributed": {"admin": {"log-format": "no field"}}},
            ValueError,
            ["key 'distributed.admin.log-format' is 'no field'", "'json'"],
        ),
        ({"distributed": {"admin": {"log-format": 5}}}, ValueError, ["log-format' is 5"]),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_key(settings, error, texts):
    with as_at_start() as loggers:
        initialize_logging({"logging": {"another": "error"}})
        with pytest.raises(error) as caught:
            initialize_logging(settings)
        for text in [*texts, "(from distributed.config.set or dask.config.set)"]:
            assert text in str(caught.value)
        if "version" not in settings.get("logging", ()):
            is_file = error is ValueError and "logging-file-config" in settings
            assert is_file or loggers("another") == "ERROR"


def test_the_error_names_the_source(monkeypatch, tmp_path):
    with as_at_start():
        monkeypatch.setenv("DASK_LOGGING__SOME_PROGRAM", "loud")
        with pytest.raises(
            ValueError, match=r"\(from environment variable DASK_LOGGING__SOME_PROGRAM"
        ):
            initialize_logging({"logging": {"some_program": "loud"}})
        path = tmp_path / "some.json"
        path.write_text('{"logging": {"some.program": "quiet"}, "logging-file-config": "x"}')
        paths = getattr(sys.modules.get("dask.config"), "paths", config_store.paths)
        before = paths[:]
        paths[:] = [str(path)]
        try:
            with pytest.raises(ValueError, match=re.escape(f"(from file '{path}')")):
                initialize_logging({"logging": {"some.program": "quiet"}})
        finally:
            paths[:] = before


def test_json_lines_and_formatters_of_the_section_exclude_each_other():
    with pytest.raises(ValueError, match=r"key 'logging' .*base\.json_lines\.JsonFormatter"):
        initialize_logging({"logging": {"version": 1}}, json_lines=True)


def test_the_format_is_the_default_of_its_key():
    from distributed.base.config_keys import KEYS

    assert KEYS[log_setup.FORMAT_KEY].default == DEFAULT_FORMAT
