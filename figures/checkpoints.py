"""The study of one checkpoint or several: each is measured, later ones are compared with the first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from figures.opening import open_checkpoints, output_folder
from figures.requests.shared import ComparisonRequest
from figures.study import Finding, Study
from figures.work import Said, Work
from star.base.names import slug
from star.training.checkpoint import Loaded

__all__ = ["CheckpointStudy", "Subject"]

Asked = TypeVar("Asked", bound=ComparisonRequest)
Plan = TypeVar("Plan")
Data = TypeVar("Data")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Subject(Generic[Plan, Data]):
    """A checkpoint under the name it goes by, what is to be done with it, its data and its files.

    ``stem`` is the folder of its files and what their names begin with.
    """

    name: str
    loaded: Loaded
    plan: Plan
    data: Data
    stem: Path


class CheckpointStudy(Study[Asked], Generic[Asked, Plan, Data, Found]):
    """A study of checkpoints. Plans and data are made for all of them before any is measured."""

    folder: ClassVar[str]  # below a run, where files go by default

    def plan(self, asked: Asked, loaded: Loaded) -> Plan:
        """What is done with a checkpoint; ``UserError`` if its model cannot be asked that."""
        raise NotImplementedError

    def data(self, asked: Asked, opened: dict[str, Loaded], work: Work) -> Mapping[str, Data]:
        """The data of every checkpoint; ``UserError`` where they do not fit it, or each other."""
        raise NotImplementedError

    def stem(self, asked: Asked, plan: Plan) -> str:
        """What the files' names begin with: all that was asked for beside the defaults.

        Another question is another file.
        """
        raise NotImplementedError

    def measure(
        self, asked: Asked, subject: Subject[Plan, Data], earlier: list[Found], work: Work
    ) -> Found:
        """Measure one checkpoint; ``earlier`` holds what was found of those before it."""
        raise NotImplementedError

    def finding(self, asked: Asked, subject: Subject[Plan, Data], found: Found) -> Finding:
        """What was found of one checkpoint, as results, figures and sentences."""
        raise NotImplementedError

    def explained(self, asked: Asked, found: Mapping[str, Found]) -> list[Said]:
        """What is said once, after all checkpoints."""
        return []

    def end(self, asked: Asked, found: Mapping[str, Found]) -> None:
        """Raise ``UserError`` for what is known only now, when everything is written."""

    def compared(self, asked: Asked, found: dict[str, Found], first: str, other: str) -> Finding:
        """``other`` beside ``first``; by default nothing."""
        return Finding()

    def together(self, asked: Asked, found: dict[str, Found]) -> Finding:
        """Several checkpoints in one picture; by default none."""
        return Finding()

    def findings(self, asked: Asked, work: Work) -> Iterator[Finding]:
        """One finding a checkpoint, then the comparisons with the first, then all in one picture."""
        subjects = self._subjects(asked, work)
        found: dict[str, Found] = {}
        for subject in subjects:
            found[subject.name] = self.measure(asked, subject, list(found.values()), work)
            finding = self.finding(asked, subject, found[subject.name])
            yield replace(finding, stem=subject.stem)
        yield Finding(said=self.explained(asked, found))
        self.end(asked, found)
        if len(subjects) > 1:
            yield from self._comparisons(asked, subjects, found)

    def _subjects(self, asked: Asked, work: Work) -> list[Subject[Plan, Data]]:
        opened = open_checkpoints(asked.ckpts, asked, work.say)
        plans = {name: self.plan(asked, loaded) for name, loaded in opened.items()}
        data = self.data(asked, opened, work)
        subjects = []
        for name, loaded in opened.items():
            stem = self._stem(asked, loaded, plans[name])
            if len(opened) > 1 and (asked.out is not None or not work.writes):  # one place for all
                stem = stem.with_name(f"{stem.name}-{slug(name, among=opened)}")
            subjects.append(Subject(name, loaded, plans[name], data[name], stem))
        return subjects

    def _stem(self, asked: Asked, loaded: Loaded, plan: Plan) -> Path:
        return output_folder(loaded, asked.out, self.folder) / self.stem(asked, plan)

    def _comparisons(
        self, asked: Asked, subjects: list[Subject[Plan, Data]], found: dict[str, Found]
    ) -> Iterator[Finding]:
        first, *others = subjects
        stem = self._stem(asked, first.loaded, first.plan)
        for other in others:
            mine, theirs = (slug(name, among=found) for name in (other.name, first.name))
            pair = stem.with_name(f"{stem.name}-{mine}-against-{theirs}")
            yield replace(self.compared(asked, found, first.name, other.name), stem=pair)
        yield replace(self.together(asked, found), stem=stem)
