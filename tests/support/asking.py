"""A study asked from Python, as in a notebook, after its command has written the same."""

from pathlib import Path

from figures.study import Answer


def asked_from_python(run, request, folder: Path) -> Answer:
    """The answer to ``request``; the files of its command lie in ``folder`` and stay as they are."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    answer = run(request)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not answer.written and answer.figures and answer.sentences
    tables = {path.stem: path.read_text() for path in before if path.suffix == ".csv"}
    found = {
        name: result.table.to_csv(index=False, float_format="%.6g")
        for name, result in answer.results.items()
    }
    assert found == tables and len(answer.result.table)
    assert set(answer.figures) == {path.stem for path in before if path.suffix == ".png"}
    return answer
