"""Batch normalisation put into a network that is there already, in front of its activations or behind them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from gainstage.errors import BadInput
from gainstage.nn.edits import Edits
from gainstage.nn.flow import check_model, flow_of
from gainstage.nn.places import Insertion, Places, Position, hidden_activations
from gainstage.signal.example import example_inputs

SAMPLES = 32  # that the network is traced on


def insert_batch_norm(
    model: nn.Module, position: Position = "before", first: bool = False, data: Any = None
) -> nn.Module:
    """Put batch normalisation before or after each hidden activation, in place; returns the model.

    Hidden is an activation, module or function, that has a linear or (transposed) convolutional layer in front of it, with
    nothing but dropout, pooling and additions between, and any layer further on, in one traced forward pass. A function
    that a forward writes out, such as x * sigmoid(x), is one activation from its first operation to its last, unless it
    explodes, as an exponential does, or what it is a function of is put out too. What is normalised already stays as it is.
    A linear layer must take (batch, features), a convolution (batch, channels, ...).
    An nn.Sequential gets new entries like "relu1_normalization" and "input_normalization". Elsewhere the pair
    (normalization, activation) takes the place of an activation without parameters and buffers, and a module with some gets
    a child "normalization" or "input_normalization", which a hook calls: nothing is renamed. Make the optimiser afterwards.
    position "before": behind the layer itself where the activation is a function or shared with other layers, and behind
    each layer whose output is added (residual networks). The bias of a layer directly in front goes, for the normalisation
    subtracts it again, unless the layer runs more than once.
    first: one more in front of the first layer, or of the network where its input is read in several places; it takes the
    place of standardised inputs.
    data: training data, or inputs alone, to trace; without it zeros whose shape is read off the first layer.
    Raises BadInput, with nothing changed, for what is no nn.Module, an unknown position, where there is nothing to normalise,
    where only the network's own code can be changed (it says how), and when no inputs go through the network, before or
    afterwards.
    Sources: Ioffe and Szegedy 2015 (before the activation), He et al. 2016 (its places in residual networks).
    """
    check_model(model)
    x = example_inputs(model, data, SAMPLES)
    insertions = plan_insertions(model, x, position, first)
    with Edits() as edits:
        insert(model, insertions, edits)
        for hidden in hidden_activations(flow_of(model, x)):
            raise BadInput(
                f"the {hidden.name} behind {hidden.layer.module} stays without normalisation, for forward calls "
                "a module from elsewhere than where it is registered; put batch_norm_after(layer) in by hand"
            )
    return model


def plan_insertions(model: nn.Module, x: Any, position: Position = "before", first: bool = False) -> list[Insertion]:
    """What insert_batch_norm is to do to a network that takes inputs `x`; raises what that raises."""
    if position not in ("before", "after"):
        raise BadInput(f"no position is called {position!r}; known are: before, after")
    places = Places(model, flow_of(model, x))
    in_front = places.in_front(x) if first else None
    found = [*places.at_activations(position), *([in_front] if in_front else [])]
    if not found:
        raise BadInput(
            "there is nothing to normalise: the network has no hidden activation behind a linear or convolutional layer "
            "without normalisation; put batch_norm_after(layer) in by hand where it belongs"
        )
    return found


def insert(model: nn.Module, insertions: Iterable[Insertion], edits: Edits) -> None:
    """Carry out what was planned."""
    for each in insertions:
        if each.entry is not None:
            parent, beside = each.entry
            edits.insert_entry(parent, each.name, each.norm, beside, each.behind)
        elif not each.module.state_dict():
            edits.pair(model, each.module, "activation", each.norm, each.behind)
        else:
            edits.attach(each.module, each.norm, each.behind)
        if each.biased is not None:
            edits.set_parameter(each.biased, "bias", None)
