"""The vocabulary of the trace."""

import pytest
import torch
from torch.nn import functional as F

from gainstage.signal import operations as ops
from gainstage.theory import moments


@pytest.mark.parametrize(
    ("function", "name"),
    [(F.relu, "relu"), (torch.relu_, "relu"), (torch.Tensor.__iadd__, "iadd"), (torch.special.expit, "expit")],
)
def test_names_are_bare(function, name):
    assert ops.name_of(function) == name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("linear", "layer"),
        ("conv_transpose2d", "layer"),
        ("batch_norm", "normalization"),
        ("sigmoid", "activation"),
        ("softmax", "softmax"),
        ("dropout", "dropout"),
        ("max_pool2d", "pool"),
        ("adaptive_avg_pool2d", "pool"),
        ("iadd", "add"),
        ("cat", "join"),
        ("flatten", "reshape"),
        ("fft_rfft", "transform"),
        ("linalg_norm", "reduce"),
        ("linalg_inv", "transform"),
        ("embedding", "layer"),
        ("lstm", "layer"),
        ("gru_cell", "layer"),
        ("bilinear", "layer"),
        ("bmm", "matmul"),
        ("sum", "reduce"),
        ("gather", "scatter"),
        ("setitem", "scatter"),
        ("interpolate", "transform"),
        ("smooth_l1_loss", "loss"),
        ("cross_entropy", "loss"),
        ("bessel_j0", "unknown"),
        ("mean", "pool"),
        ("lp_pool2d", "pool"),
        ("where", "pointwise"),
        ("gt", "pointwise"),
        ("masked_fill", "pointwise"),
        ("log_sigmoid", "pointwise"),
        ("rms_norm", "normalization"),
        ("feature_alpha_dropout", "dropout"),
        ("scaled_dot_product_attention", "attention"),
        ("pad", "reshape"),
        ("neg", "multiply"),
        ("rsub", "add"),
    ],
)
def test_kinds(name, kind):
    assert ops.kind_of(name) == kind


def test_no_function_is_both_silent_and_meaningful():
    meaningful = ops.LAYERS | ops.NORMALIZATIONS | ops.RESHAPES | ops.ADDITIONS | ops.JOINS | set(ops.ACTIVATIONS)
    assert not (meaningful | ops.POINTWISE | ops.PRODUCTS | ops.ATTENTIONS) & ops.SILENT


def test_no_function_has_two_meanings():
    families = [found for _, found in ops._VOCABULARY]
    assert sum(map(len, families)) == len({name for names in families for name in names})


@pytest.mark.parametrize("name", sorted(ops.POINTWISE - {"rtruediv"}))
def test_pointwise_names_are_those_that_torch_gives_its_functions(name):
    """rpow and the like are Tensor.__rpow__; what torch calls otherwise would never be met (F.logsigmoid is log_sigmoid)."""
    places = (torch, torch.Tensor, F, torch.special)
    spellings = (name, f"__{name}__", name.replace("log_s", "logs"))
    found = [getattr(place, one) for place in places for one in spellings if hasattr(place, one)]
    assert name in {ops.name_of(function) for function in found}


def test_what_is_taken_number_by_number():
    assert [ops.is_elementwise(kind) for kind in ("activation", "pointwise", "add", "multiply")] == [True] * 4
    assert not any(ops.is_elementwise(kind) for kind in ("layer", "softmax", "pool", "join", "reshape", "unknown"))
    assert ops.COMPARISONS < ops.POINTWISE


def test_only_functions_that_are_zero_on_one_side_let_units_die():
    assert set(ops.RECTIFIERS) < set(ops.ACTIVATIONS)
    for name in ops.ACTIVATIONS:
        activation = ops.activation_of(name, {})
        if activation is not None:
            below = activation.function(torch.linspace(-9, -1, 9, dtype=torch.float64))
            assert (name in ops.RECTIFIERS) == bool((below == 0).all()) or name in ("hardsigmoid", "hardswish"), name


@pytest.mark.parametrize(
    ("name", "settings", "function"),
    [
        ("leaky_relu", {"negative_slope": 0.3}, lambda z: F.leaky_relu(z, 0.3)),
        ("prelu", {"slope": 0.1}, lambda z: F.leaky_relu(z, 0.1)),
        ("elu", {"alpha": 0.5}, lambda z: F.elu(z, 0.5)),
        ("gelu", {"approximate": "tanh"}, lambda z: F.gelu(z, approximate="tanh")),
        ("hardtanh", {"min_val": -2.0, "max_val": 0.5}, lambda z: F.hardtanh(z, -2.0, 0.5)),
        ("softplus", {"beta": 2.0}, lambda z: F.softplus(z, beta=2.0)),
        ("sigmoid", {}, torch.sigmoid),
    ],
)
def test_the_theory_of_an_activation_takes_its_settings(name, settings, function):
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)
    activation = ops.activation_of(name, settings)
    assert torch.equal(activation.function(z), function(z))


def test_equal_settings_give_the_same_activation_so_that_theory_is_worked_out_once():
    first, second = (ops.activation_of("leaky_relu", {"negative_slope": 0.2, "inplace": b}) for b in (True, True))
    assert first is second
    assert moments(first) is moments(second)


def test_positional_arguments_get_their_names():
    x, w = torch.zeros(2, 3), torch.zeros(4, 3)
    given = ops.arguments_of("linear", (x, w), {"bias": None})
    assert given == {"weight": w, "bias": None} or given["weight"] is w
    assert ops.arguments_of("elu", (x, 0.5), {})["alpha"] == 0.5
