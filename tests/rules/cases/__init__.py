"""For every rule a network with the fault and a healthy twin, by the rule's code; one file a group of families."""

from tests.rules.cases import signals
from tests.rules.cases.case import Case as Case

CASES: dict[str, Case] = {**signals.CASES}
