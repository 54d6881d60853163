"""A question asked from Python: nothing is written, and the answer is the command's."""

from pathlib import Path

from figures.study import Answer


def files(*folders: Path) -> dict[Path, int]:
    """Every file below the folders and when it was changed."""
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


def answered(study, request, *folders: Path) -> Answer:
    """The answer of a study's ``run``, which left the folders as they were."""
    before = files(*folders)
    answer = study.run(request)
    assert files(*folders) == before and answer.written == []
    return answer


def same_as_written(answer: Answer, folder: Path, printed: str) -> bool:
    """Whether a command wrote this answer to ``folder``, pictures too, and printed its words."""
    for name, result in answer.results.items():
        own = result.table.to_csv(index=False, float_format="%.6g")
        assert (folder / f"{name}.csv").read_text(encoding="utf-8") == own, name
    assert {path.stem for path in folder.glob("*.csv")} == set(answer.results)
    assert {path.stem for path in folder.glob("*.png")} == set(answer.figures)
    lines = printed.splitlines()
    assert [said for said in answer.sentences if said not in lines] == []
    cells = [cell for rows in answer.tables for row in rows.rows for cell in row]
    words = {word for cell in cells for word in cell.split()}  # a narrow terminal wraps between them
    assert [word for word in words if word not in printed] == []
    return True
