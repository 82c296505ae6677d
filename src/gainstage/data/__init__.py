"""From files, arrays, data sets and loaders to batches of tensors."""

from gainstage.data.digits import load_digits as load_digits
from gainstage.data.sources import Batch as Batch
from gainstage.data.sources import InMemory as InMemory
from gainstage.data.sources import Source as Source
from gainstage.data.sources import as_source as as_source
from gainstage.data.sources import mapped as mapped
from gainstage.data.sources import order_kept as order_kept
from gainstage.data.sources import training_batches as training_batches
