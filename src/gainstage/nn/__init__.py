"""What networks are built with: initialisers, activations, normalisation, and whole networks in one line."""

from gainstage.nn.absorption import Absorbed as Absorbed
from gainstage.nn.activations import make as activation
from gainstage.nn.blocks import blocks_of as blocks_of
from gainstage.nn.blocks import fans_of as fans_of
from gainstage.nn.constants import Constant as Constant
from gainstage.nn.constants import mean_bias as mean_bias
from gainstage.nn.constants import prior_bias as prior_bias
from gainstage.nn.constants import prior_bias_binary as prior_bias_binary
from gainstage.nn.folding import Folding as Folding
from gainstage.nn.folding import RefusedNorm as RefusedNorm
from gainstage.nn.folding import fold_batch_norm as fold_batch_norm
from gainstage.nn.initializers import VarianceScaling as VarianceScaling
from gainstage.nn.initializers import fill as fill
from gainstage.nn.initializers import from_scheme as from_scheme
from gainstage.nn.initializers import get as initializer
from gainstage.nn.insertion import insert_batch_norm as insert_batch_norm
from gainstage.nn.networks import convolutional_network as convolutional_network
from gainstage.nn.networks import dense_network as dense_network
from gainstage.nn.normalization import batch_norm_after as batch_norm_after
from gainstage.nn.normalization import keras_momentum as keras_momentum
from gainstage.nn.population import LayerStatistics as LayerStatistics
from gainstage.nn.population import PopulationStatistics as PopulationStatistics
from gainstage.nn.population import population_statistics as population_statistics
from gainstage.nn.recommendation import recommend_activation as recommend_activation
from gainstage.nn.self_normalization import SelfNormalization as SelfNormalization
from gainstage.nn.self_normalization import self_normalization as self_normalization

__all__ = [
    "Absorbed",
    "Folding",
    "LayerStatistics",
    "PopulationStatistics",
    "RefusedNorm",
    "SelfNormalization",
    "VarianceScaling",
    "activation",
    "batch_norm_after",
    "dense_network",
    "fans_of",
    "fill",
    "fold_batch_norm",
    "from_scheme",
    "initializer",
    "insert_batch_norm",
    "keras_momentum",
    "population_statistics",
    "recommend_activation",
    "self_normalization",
]
