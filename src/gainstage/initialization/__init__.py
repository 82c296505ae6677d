"""gs.initialize and what it is made of."""

from gainstage.initialization.initialize import Initialization as Initialization
from gainstage.initialization.initialize import InitializedStage as InitializedStage
from gainstage.initialization.initialize import initialize as initialize
from gainstage.initialization.initialize import initialize_stages as initialize_stages
from gainstage.initialization.inputs import materialize as materialize
from gainstage.initialization.plans import is_gate as is_gate
from gainstage.initialization.plans import plan_for as plan_for
from gainstage.initialization.stages import bias_of as bias_of
from gainstage.initialization.stages import scheme_of as scheme_of
from gainstage.initialization.stages import weight_of as weight_of
from gainstage.initialization.stages import whole as whole
