"""What a rule and a finding are, and the registry of all rules."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

from gainstage.errors import BadInput
from gainstage.rules.context import Context, NotEnoughEvidence

Severity = Literal["error", "warning", "note"]
Depth = Literal["static", "preflight", "trial", "run"]
Status = Literal["stable", "preview"]
DEPTHS: tuple[Depth, ...] = ("static", "preflight", "trial", "run")
HEADINGS = ("What it does", "Why it matters", "How it is measured", "What to do", "References")


@dataclass(frozen=True)
class Finding:
    """A rule that fired: place, evidence in numbers, and what may cure it.

    where: names of the stages concerned, in order. evidence: numbers by name (dB, ratios, shares). message: one sentence
    with place, numbers and cause. remedies: names of remedies, the least invasive first. consequences: findings that
    this one explains. confidence: that it is no accident of the samples, from its own evidence: 1 for facts.
    """

    code: str
    name: str
    severity: Severity
    where: tuple[str, ...]
    evidence: dict[str, float]
    message: str
    remedies: tuple[str, ...] = ()
    consequences: tuple[Finding, ...] = ()
    confidence: float = 1.0

    def __str__(self) -> str:
        return f"{self.code} {self.name}  {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)

    def overlaps(self, other: Finding) -> bool:
        """True when the two concern a common stage, or one of them the whole network."""
        return not self.where or not other.where or bool(set(self.where) & set(other.where))


class Rule(ABC):
    """A numbered check. Its docstring, under the fixed headings, is its only documentation."""

    code: ClassVar[str]
    name: ClassVar[str]
    depth: ClassVar[Depth]
    status: ClassVar[Status] = "stable"
    severity: ClassVar[Severity] = "warning"
    caused_by: ClassVar[tuple[str, ...]] = ()
    remedies: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def check(self, context: Context) -> list[Finding]:
        """Findings in this network; an empty list for a healthy one, and where what the rule looks at is not there at all.
        Raises NotEnoughEvidence where it is there, but too little to tell."""

    def finding(
        self,
        where: Sequence[str],
        message: str,
        evidence: dict[str, float],
        severity: Severity | None = None,
        confidence: float = 1.0,
    ) -> Finding:
        """A finding of this rule."""
        return Finding(
            self.code,
            self.name,
            severity or self.severity,
            tuple(where),
            evidence,
            message,
            remedies=self.remedies,
            confidence=confidence,
        )


REGISTRY: dict[str, type[Rule]] = {}
AnyRule = TypeVar("AnyRule", bound=Rule)


def register(rule: type[AnyRule]) -> type[AnyRule]:
    """Class decorator: enters a rule under its code; a code or name used twice is an error of ours."""
    if rule.code in REGISTRY or any(known.name == rule.name for known in REGISTRY.values()):
        raise ValueError(f"rule {rule.code} {rule.name} is registered already")
    REGISTRY[rule.code] = rule
    return rule


def sections(rule: type[Rule]) -> dict[str, str]:
    """The rule's documentation by heading, with the summary under the empty heading."""
    parts = re.split(r"^## (.+)$", inspect.cleandoc(rule.__doc__ or ""), flags=re.MULTILINE)
    return {
        "": parts[0].strip(),
        **{h.strip(): text.strip() for h, text in zip(parts[1::2], parts[2::2], strict=True)},
    }


def find_rule(code_or_name: str) -> type[Rule]:
    """The rule of that code (any case) or name; BadInput lists the known codes."""
    for rule in REGISTRY.values():
        if code_or_name.upper() == rule.code or code_or_name.lower() == rule.name:
            return rule
    raise BadInput(f"no rule is called {code_or_name!r}; known are: {', '.join(sorted(REGISTRY))}")


def choose(select: Iterable[str] | None = None, ignore: Iterable[str] | None = None) -> list[type[Rule]]:
    """Rules in order of their codes, narrowed by codes ("G101"), prefixes ("G", "S1") or names."""
    rules = [REGISTRY[code] for code in sorted(REGISTRY)]
    if select is not None:
        wanted = _expand(select)
        if not wanted:
            raise BadInput("select names no rule; leave it out to have them all")
        rules = [rule for rule in rules if rule.code in wanted]
    unwanted = _expand(ignore or ())
    return [rule for rule in rules if rule.code not in unwanted]


def _expand(patterns: Iterable[str] | str) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = {code for code in REGISTRY if pattern and code.startswith(pattern.upper())}
        found |= matches or {find_rule(pattern).code}
    return found


@dataclass(frozen=True)
class Verdict:
    """What the rules said. findings: consequences folded under their causes. undecided: why a rule could not tell, by its
    code."""

    findings: tuple[Finding, ...]
    undecided: dict[str, str] = field(default_factory=dict)


def run_rules(rules: Iterable[type[Rule]], context: Context, depth: Depth) -> Verdict:
    """What all rules say that can speak at this depth."""
    findings: list[Finding] = []
    undecided: dict[str, str] = {}
    for rule in rules:
        if can_speak(rule, depth):
            try:
                findings += rule().check(context)
            except NotEnoughEvidence as missing:
                undecided[rule.code] = str(missing)
    return Verdict(fold(findings), undecided)


def can_speak(rule: type[Rule], depth: Depth) -> bool:
    """True when the rule needs no more than what is known at `depth`."""
    return DEPTHS.index(rule.depth) <= DEPTHS.index(depth)


def fold(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Put each finding under the one that causes it, where that one is present and concerns a common stage.

    What remains on top are the root causes, each as severe as the gravest of what it causes: errors first, then those
    that explain most.
    """
    parents: dict[int, int] = {}
    for i, finding in enumerate(findings):
        for cause in REGISTRY[finding.code].caused_by:
            match = [j for j, f in enumerate(findings) if f.code == cause and f.overlaps(finding)]
            if match:
                parents[i] = match[0]
                break
    roots = [i for i in range(len(findings)) if i not in parents]
    folded = []
    for root in roots:
        consequences = tuple(findings[i] for i in parents if _root(i, parents) == root)
        severity = worst([findings[root], *consequences])
        folded.append(replace(findings[root], consequences=consequences, severity=severity))
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(folded, key=lambda f: (order[f.severity], -len(f.consequences))))


def _root(i: int, parents: dict[int, int]) -> int:
    while i in parents:
        i = parents[i]
    return i


def flatten(findings: Iterable[Finding]) -> list[Finding]:
    """All findings, consequences included."""
    return [each for finding in findings for each in (finding, *flatten(finding.consequences))]


def worst(findings: Iterable[Finding]) -> Severity:
    """The gravest severity among findings and their consequences."""
    present = {finding.severity for finding in flatten(findings)}
    return "error" if "error" in present else "warning" if "warning" in present else "note"
