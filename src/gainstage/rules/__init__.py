"""The rule book: one family a file, one class a rule, its documentation in its docstring."""

# importing a family enters its rules into the registry
from gainstage.rules import gradient, initialization, signal
from gainstage.rules.base import DEPTHS as DEPTHS
from gainstage.rules.base import HEADINGS as HEADINGS
from gainstage.rules.base import REGISTRY as REGISTRY
from gainstage.rules.base import Depth as Depth
from gainstage.rules.base import Finding as Finding
from gainstage.rules.base import Rule as Rule
from gainstage.rules.base import Severity as Severity
from gainstage.rules.base import can_speak as can_speak
from gainstage.rules.base import choose as choose
from gainstage.rules.base import find_rule as find_rule
from gainstage.rules.base import flatten as flatten
from gainstage.rules.base import run_rules as run_rules
from gainstage.rules.base import sections as sections
from gainstage.rules.context import Context as Context
from gainstage.rules.context import NotEnoughEvidence as NotEnoughEvidence

FAMILIES = (signal, gradient, initialization)
