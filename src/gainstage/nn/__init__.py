"""What networks are built with: initialisers, activations, normalisation, and whole networks in one line."""

from gainstage.nn.activations import make as activation
from gainstage.nn.initializers import VarianceScaling as VarianceScaling
from gainstage.nn.initializers import fans_of as fans_of
from gainstage.nn.initializers import fill as fill
from gainstage.nn.initializers import from_scheme as from_scheme
from gainstage.nn.initializers import get as initializer
from gainstage.nn.networks import dense_network as dense_network
from gainstage.nn.normalization import batch_norm_after as batch_norm_after

__all__ = [
    "VarianceScaling",
    "activation",
    "batch_norm_after",
    "dense_network",
    "fans_of",
    "fill",
    "from_scheme",
    "initializer",
]
