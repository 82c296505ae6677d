"""What an observer is told, and in which order."""

from torch import nn

from gainstage.signal.observer import Observer
from gainstage.signal.trace import Tracer
from tests.tools import normal, quiet

TOLD = [name for name in vars(Observer) if not name.startswith("_")]


class Listener(Observer):
    def __init__(self):
        self.heard = []


for _name in TOLD:
    setattr(Listener, _name, lambda self, *given, _name=_name: self.heard.append((_name, given)))


def network():
    return quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))


def told(observer):
    model, x = network(), normal(16, 20)
    tracer = Tracer(model, observer)
    with tracer.of(model, x):
        output = model(x)
    tracer.finish(output)
    return model, output


def test_what_happens_is_told_in_its_order():
    listener = Listener()
    model, output = told(listener)
    assert [name for name, _ in listener.heard] == [
        "stage_output", "layer", "layer_output", "normalization", "activation", "activated",
        "stage_output", "layer", "layer_output", "stage_output",
    ]  # fmt: skip
    assert listener.heard[1][1][1] is model[0].weight
    assert listener.heard[3][1][2] is model[1].bias
    assert listener.heard[-1][1][2] is output


def test_an_observer_changes_nothing_of_itself():
    model, output = told(Observer())
    assert output.equal(model(normal(16, 20)))
