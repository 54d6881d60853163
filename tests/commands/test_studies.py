"""The measuring commands and their requests: one description of every option, asked in the same way."""

import dataclasses
from importlib import import_module
from pathlib import Path

import pytest

from cli.commands import studies
from figures.requests import measures, probing
from figures.work import Work
from star.base.errors import UserError

ROOT = Path(__file__).parents[2]
REQUESTS = {name: (request, study) for name, (request, study, _) in studies.STUDIES.items()}
ALL = {**REQUESTS, "probe": (probing.Request, "probing")}


def flags(request) -> dict[str, str]:
    """The option of every field, as the command line writes it."""
    return {
        field.name: field.metadata.get("flag") or "--" + field.name.replace("_", "-")
        for field in dataclasses.fields(request)
        if not field.metadata.get("argument")
    }


@pytest.mark.parametrize("name", ALL)
def test_help_has_an_option_for_every_field_and_the_request_s_text(star, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    request, _ = ALL[name]
    code, out, _ = star(name, "--help")
    assert code == 0
    for flag in flags(request).values():
        assert flag.split("/")[0] in out, flag
    assert request.__doc__.splitlines()[0] in out


@pytest.mark.parametrize("name", REQUESTS)
def test_a_command_asks_what_its_options_say_and_else_the_defaults(star, monkeypatch, name):
    request, _ = REQUESTS[name]
    needs = {f.name: "x" for f in dataclasses.fields(request) if f.default is dataclasses.MISSING}
    asked = []
    monkeypatch.setattr(studies, "answer", lambda study, given: asked.append((study, given)))
    assert star(name, *needs.values(), "--device", "cpu")[0] == 0
    assert asked == [(REQUESTS[name][1], request(**needs, device="cpu"))]


@pytest.mark.parametrize("name", ALL)
def test_a_study_refuses_a_value_of_the_wrong_type_by_name(name):
    request, study = ALL[name]
    needs = {f.name: "x" for f in dataclasses.fields(request) if f.default is dataclasses.MISSING}
    with pytest.raises(UserError, match="device is 3; expected a value of type str"):
        import_module(f"figures.studies.{study}").run(request(**needs, device=3))


def test_every_request_has_its_study_and_its_command():
    requests = {path.stem for path in (ROOT / "figures" / "requests").glob("[!_]*.py")}
    requests -= {"shared", "sampling"}  # which star sample asks, and no study
    assert requests == {study for _, study in ALL.values()} | {"measures"}
    for name in requests:
        module = import_module(f"figures.studies.{name}")
        assert module.Request is import_module(f"figures.requests.{name}").Request
        assert callable(module.run)
    assert measures.Request is not probing.Request


def test_an_answer_about_several_runs_keeps_the_results_of_each(trained, stores, tmp_path):
    """Written, each lies in its own run under one name; an answer has a name for each."""
    from shutil import copytree

    from figures.studies import attention_stats

    runs = [copytree(trained, tmp_path / name) for name in ("one", "other")]
    request = attention_stats.Request(ckpts=runs, data=stores, images=2, steps=1, layers="1")
    answer = attention_stats.run(request)
    tables = [name for name in answer.results if not name.endswith("-places")]
    assert len(tables) == 2 and len(answer.results) == 4
    written = attention_stats.run(request, Work(writes=True))
    assert [list(answer.results[name].table["value"]) for name in tables] == [
        list(result.table["value"])
        for name, result in written.results.items()
        if not name.endswith("-places")
    ]
    assert all((run / "attention-stats").is_dir() for run in runs)
