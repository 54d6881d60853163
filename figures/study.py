"""The one mechanism for a question: a study takes a request and gives tables, figures and sentences.

A study yields its findings one by one; ``Study.run`` writes each (where it is asked to) before it says
it, so that whoever stops reading what is printed keeps the measurement. What does not fit is refused
before anything is measured. ``figures.checkpoints`` is the study of one checkpoint or several.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from matplotlib.figure import Figure

from figures.opening import check_out
from figures.work import Rows, Said, Work
from probes.results import Result, write_result
from star.base.errors import UserError
from star.base.settings import check_fields
from star.parallel.processes import rank
from viz.base.style import save

__all__ = ["Answer", "Finding", "Study", "Writer"]


class Request(Protocol):
    """What every request is: a frozen dataclass that says where files go."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path | None: ...


Asked = TypeVar("Asked", bound=Request)


Writer = Callable[[Path], Iterable[Path]]  # writes a file; returns what was written


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something found: results, figures and other files by what their names end in, and what is said.

    stem: folder and beginning of the files' names. files: writers of what is neither, called with the
    path; each returns the paths written.
    """

    stem: Path = Path()
    results: Mapping[str, Result] = field(default_factory=dict)
    files: Mapping[str, Writer] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    said: Sequence[Said] = ()
    formats: Sequence[str] = ("png", "pdf")

    def path(self, ending: str) -> Path:
        """The stem with an ending."""
        return self.stem.with_name(f"{self.stem.name}{ending}")


@dataclass(frozen=True)
class Answer:
    """What a study has found: results and figures by the names of their files, without suffix.

    ``figures`` is empty where they were written; ``written`` holds the files then. ``said`` is what the
    command prints, in its order.
    """

    results: dict[str, Result] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    @property
    def result(self) -> Result:
        """The first result: of the first checkpoint, tokenizer or image; ``UserError`` if none."""
        if not self.results:
            raise UserError("the answer has no table: it is files alone; ask with Work(writes=True)")
        return next(iter(self.results.values()))

    @property
    def sentences(self) -> list[str]:
        """What is said in sentences."""
        return [said for said in self.said if isinstance(said, str)]

    @property
    def tables(self) -> list[Rows]:
        """What is said in small tables."""
        return [said for said in self.said if isinstance(said, Rows)]


class Study(Generic[Asked]):
    """A question that can be asked. Subclasses say what is refused and what is found."""

    request: ClassVar[type]

    def check(self, asked: Asked) -> None:
        """Raise ``UserError`` for what contradicts itself, whatever it is asked of."""

    def findings(self, asked: Asked, work: Work) -> Iterator[Finding]:
        """Open what is asked of, refuse what does not fit, then measure: finding by finding."""
        raise NotImplementedError

    def run(self, asked: Asked, work: Work | None = None) -> Answer:
        """The answer to a request; files are written only where ``work`` says so.

        Of several processes, the first writes and speaks. Raises ``UserError`` before anything is
        measured if the request cannot be answered.
        """
        work = Work() if work is None else work
        asked = check_fields(asked)
        if work.writes:
            check_out(asked.out)
        self.check(asked)
        seed = getattr(asked, "seed", None)
        if seed is not None and seed < 0:
            raise UserError(f"seed is {seed}; expected at least 0")
        answer = Answer()
        for finding in self.findings(asked, work):
            if rank() == 0:
                _add(answer, finding, work)
        return answer


def _add(answer: Answer, finding: Finding, work: Work) -> None:
    for ending, result in finding.results.items():
        path = finding.path(ending)
        # The same question of several runs, each written into its own, has the same names.
        answer.results[path.name if path.name not in answer.results else str(path)] = result
        if work.writes:
            answer.written.extend(write_result(result, path.with_name(f"{path.name}.csv")))
    for ending, writer in finding.files.items():
        if work.writes:
            answer.written.extend(writer(finding.path(ending)))
    for ending, figure in finding.figures.items():
        path = finding.path(ending)
        if work.writes:
            answer.written.extend(save(figure, path, finding.formats))
        else:
            assert path.name not in answer.figures, path
            answer.figures[path.name] = figure
    answer.said.extend(finding.said)
    for said in finding.said:
        work.say(said)
