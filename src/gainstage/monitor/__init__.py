"""Live measuring inside any training loop."""

from gainstage.monitor.store import RunStore as RunStore
from gainstage.monitor.watch import Monitor as Monitor
from gainstage.monitor.watch import Reading as Reading
from gainstage.monitor.watch import watch as watch
