"""Executable, undoable changes: one family a file, one class a remedy."""

# importing a family enters its remedies into the registry
from gainstage.remedies import activation, initialization, normalization
from gainstage.remedies.base import REGISTRY as REGISTRY
from gainstage.remedies.base import CannotApply as CannotApply
from gainstage.remedies.base import Remedy as Remedy
from gainstage.remedies.base import Treatment as Treatment
from gainstage.remedies.base import Undo as Undo

FAMILIES = (initialization, activation, normalization)
