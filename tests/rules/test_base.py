"""The registry as a whole, choosing rules, and folding consequences under causes."""

import ast
import inspect
import re

import pytest

from gainstage.errors import BadInput
from gainstage.remedies import REGISTRY as REMEDIES
from gainstage.rules import HEADINGS, REGISTRY, Finding, choose, find_rule, flatten, sections
from gainstage.rules.base import fold, register
from tests.rules.cases import CASES

RULES = sorted(REGISTRY.values(), key=lambda rule: rule.code)
FAMILIES = {
    "S": "signal", "G": "gradient", "I": "initialization", "A": "architecture", "N": "normalization", "L": "loss",
    "D": "data", "O": "optimization", "R": "regularization",
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_is_documented_under_the_fixed_headings_in_order(rule):
    assert complete(sections(rule))


def complete(parts):
    return list(parts) == ["", *HEADINGS] and all(len(text.split()) >= 3 for text in parts.values())


def test_the_check_of_documentation_notices_gaps():
    class Undocumented:
        """Summary of it all.

        ## What it does
        Something useful.
        """

    assert not complete(sections(Undocumented))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_has_a_sound_code_name_and_home(rule):
    assert re.fullmatch(r"[SGIANLDOR]\d{3}", rule.code)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.name)
    assert rule.__module__.endswith(f".{FAMILIES[rule.code[0]]}")
    assert find_rule(rule.code) is find_rule(rule.code.lower()) is find_rule(rule.name) is rule


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_names_remedies_and_causes_that_exist(rule):
    assert set(rule.remedies) <= set(REMEDIES)
    assert set(rule.caused_by) <= set(REGISTRY)


def test_every_rule_has_its_two_cases_and_no_case_lacks_its_rule():
    assert set(CASES) == set(REGISTRY)


def test_a_code_or_name_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="registered already"):
        register(type("Copy", (RULES[0],), {"name": "another-name"}))
    with pytest.raises(ValueError, match="registered already"):
        register(type("Copy", (RULES[0],), {"code": "S999"}))


@pytest.mark.parametrize(
    ("select", "ignore", "codes"),
    [
        (["G"], None, ["G101", "G102"]),
        (["S10"], ["S102"], ["S101", "S103"]),
        (["vanishing-gradient"], None, ["G101"]),
        ("g101", None, ["G101"]),
        (None, ["S", "G"], ["I101"]),
    ],
)
def test_rules_are_chosen_by_code_prefix_or_name(select, ignore, codes):
    assert [rule.code for rule in choose(select, ignore)] == codes


@pytest.mark.parametrize("pattern", ["X999", "", "vanishing"])
def test_an_unknown_rule_lists_the_known_ones(pattern):
    with pytest.raises(BadInput, match="G101, G102"):
        choose(select=[pattern])


def finding(code, *where, severity="warning"):
    return Finding(code, REGISTRY[code].name, severity, where, {}, "something")


def test_consequences_fold_under_their_cause_where_they_share_a_stage():
    folded = fold([finding("G101", "b", "c"), finding("I101", "a", "b"), finding("S102", "z")])
    assert [f.code for f in folded] == ["I101", "S102"]
    assert [f.code for f in folded[0].consequences] == ["G101"]
    assert {f.code for f in flatten(folded)} == {"G101", "I101", "S102"}


def test_findings_overlap_where_they_share_a_stage_or_one_concerns_the_whole_network():
    assert finding("G101", "b", "c").overlaps(finding("S103", "a", "b"))
    assert not finding("G101", "b", "c").overlaps(finding("S103", "a", "d"))
    assert finding("G101").overlaps(finding("S103", "a"))
    assert finding("G101", "a").overlaps(finding("S103"))


def test_a_chain_of_causes_folds_under_its_root():
    folded = fold([finding("G101", "a"), finding("S102", "a"), finding("I101", "a")])
    assert [f.code for f in folded] == ["I101"]
    assert {f.code for f in folded[0].consequences} == {"G101", "S102"}


def test_errors_come_first_also_when_only_a_consequence_is_one():
    folded = fold([finding("S101", "x"), finding("I101", "a"), finding("S103", "a", severity="error")])
    assert [f.code for f in folded] == ["I101", "S101"]
    assert [f.severity for f in folded] == ["error", "warning"]


def test_causes_never_run_in_circles():
    def ancestors(code, seen=()):
        assert code not in seen
        for cause in REGISTRY[code].caused_by:
            ancestors(cause, (*seen, code))

    for code in REGISTRY:
        ancestors(code)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_no_rule_has_its_text_anywhere_but_in_its_docstring(rule):
    tree = ast.parse(inspect.getsource(inspect.getmodule(rule)))
    docstrings = [ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef)]
    assert sum(bool(d) and "## What it does" in d for d in docstrings) == len(
        [r for r in RULES if r.__module__ == rule.__module__]
    )
