"""Trace, measure, ledger: every stage of a network as it really ran, and what theory expects of it."""

from gainstage.signal.expected import ExpectedStage as ExpectedStage
from gainstage.signal.expected import Prediction as Prediction
from gainstage.signal.expected import predict as predict
from gainstage.signal.graph import NETWORK_INPUT as NETWORK_INPUT
from gainstage.signal.graph import Graph as Graph
from gainstage.signal.graph import Operation as Operation
from gainstage.signal.graph import Stage as Stage
from gainstage.signal.joints import Attention as Attention
from gainstage.signal.joints import Branch as Branch
from gainstage.signal.ledger import Ledger as Ledger
from gainstage.signal.ledger import Place as Place
from gainstage.signal.ledger import Row as Row
from gainstage.signal.measure import measure as measure
from gainstage.signal.measure import trace as trace
from gainstage.signal.untouched import untouched as untouched
