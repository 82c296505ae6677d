"""What a training is after: which loss it lowers, found out from what the loss does, and what kind of targets it is given."""

from gainstage.objective.losses import Objective as Objective
from gainstage.objective.losses import recognise as recognise
from gainstage.objective.targets import Targets as Targets
from gainstage.objective.targets import describe as describe
