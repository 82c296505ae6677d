"""Layers of every kind: what opens a stage, with which weights, fans and units."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.signal import NETWORK_INPUT, measure, predict, trace
from tests.networks import Function
from tests.tools import blobs, generator, normal, quiet

LOSS = nn.CrossEntropyLoss()


class Product(nn.Module):
    """One parameter, and whatever is done with it."""

    def __init__(self, shape, product):
        super().__init__()
        self.weight = nn.Parameter(normal(*shape))
        self.bias = nn.Parameter(normal(shape[-1]))
        self.product = product

    def forward(self, x):
        return self.product(self, x)


PRODUCTS = {  # shape of the weight, what is done, shape of the input, fans, place of the units and their number
    "x @ w": ((20, 6), lambda s, x: x @ s.weight, (4, 20), (20, 6), -1, 6),
    "w @ x": ((6, 20), lambda s, x: s.weight @ x, (4, 20, 3), (20, 6), -2, 6),
    "x @ w.T": ((6, 20), lambda s, x: x @ s.weight.T, (4, 20), (20, 6), -1, 6),
    "x @ vector": ((20,), lambda s, x: x @ s.weight, (4, 20), (20, 1), -1, 0),
    "matmul": ((20, 6), lambda s, x: torch.matmul(x, s.weight), (4, 5, 20), (20, 6), -1, 6),
    "mm": ((20, 6), lambda s, x: x.mm(s.weight), (4, 20), (20, 6), -1, 6),
    "bmm": ((4, 20, 6), lambda s, x: torch.bmm(x, s.weight), (4, 5, 20), (20, 6), -1, 6),
    "addmm": ((20, 6), lambda s, x: torch.addmm(s.bias, x, s.weight), (4, 20), (20, 6), -1, 6),
    "baddbmm": ((4, 20, 6), lambda s, x: torch.baddbmm(s.bias, x, s.weight), (4, 5, 20), (20, 6), -1, 6),
    "einsum": ((20, 6), lambda s, x: torch.einsum("ni, io -> no", x, s.weight), (4, 20), (20, 6), -1, 6),
    "einsum, weight first": ((6, 20), lambda s, x: torch.einsum("oi,ni->no", s.weight, x), (4, 20), (20, 6), -1, 6),
    "einsum over two": ((5, 20, 6), lambda s, x: torch.einsum("nti,tio->no", x, s.weight), (4, 5, 20), (100, 6), -1, 6),
    "einsum by position": ((5, 20, 6), lambda s, x: torch.einsum("nti,tio->nto", x, s.weight), (4, 5, 20), (20, 6), -1, 6),
    "einsum to heads": ((20, 2, 6), lambda s, x: torch.einsum("ni,iho->nho", x, s.weight), (4, 20), (20, 12), -1, 6),
    "einsum, units first": ((20, 6), lambda s, x: torch.einsum("nti,io->not", x, s.weight), (4, 5, 20), (20, 6), -2, 6),
    "einsum of a list": ((20, 6), lambda s, x: torch.einsum("ni,io->no", [x, s.weight]), (4, 20), (20, 6), -1, 6),
    "tensordot": ((20, 6), lambda s, x: torch.tensordot(x, s.weight, 1), (4, 20), (20, 6), -1, 0),
    "tensordot over two": (
        (5, 20, 6), lambda s, x: torch.tensordot(x, s.weight, ([1, 2], [0, 1])), (4, 5, 20), (100, 6), -1, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "product", "given", "fans", "place", "units"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_with_a_parameter_is_a_layer(shape, product, given, fans, place, units):
    (stage,) = trace(Product(shape, product), normal(*given)).stages
    layer = stage.layer
    assert (layer.kind, layer.fans, layer.channel_dim, layer.units) == ("layer", fans, place, units)
    assert layer.weight == ("" if product is PRODUCTS["x @ w.T"][1] else "weight"), "what is made of it is not it"
    assert "weight" in layer.parameters
    assert not units or layer.channels == units


@pytest.mark.parametrize("equation", ["...i,...io->...o", "ni,io"])
def test_an_equation_that_does_not_name_all_is_a_layer_of_unknown_fans(equation):
    model = Product((20, 6), lambda s, x: torch.einsum(equation, x, s.weight))
    (stage,) = trace(model, normal(4, 20)).stages
    assert (stage.layer.kind, stage.layer.fans) == ("layer", None)


def test_a_product_of_two_signals_is_no_layer_and_one_with_a_constant_neither():
    model = quiet(lambda: nn.Linear(20, 8))
    squared = trace(nn.Sequential(model, Function(lambda z: z @ z.T)), normal(4, 20))
    assert [op.kind for op in squared.operations if op.name == "matmul"] == ["matmul"]
    mixed = trace(nn.Sequential(model, Function(lambda z: z @ torch.ones(8, 3))), normal(4, 20))
    assert [op.kind for op in mixed.operations] == ["layer", "matmul"]
    assert not squared.unknown + mixed.unknown


def test_a_product_is_measured_and_predicted_as_the_linear_layer_that_it_is():
    x, y = blobs()
    weight, bias = 0.2 * normal(20, 40), normal(40)
    product = Product((20, 40), lambda s, x: torch.addmm(s.bias, x, s.weight))
    linear = quiet(lambda: nn.Linear(20, 40))
    with torch.no_grad():
        for model, values in ((product, weight), (linear, weight.T)):
            model.weight.copy_(values)
            model.bias.copy_(bias)
    ledgers = [measure(model, LOSS, (x, y))[1] for model in (product, linear)]
    for name in ("signal", "offset", "gain", "expected_gain", "gain_error", "gradient", "weight", "weight_gradient"):
        found, expected = (getattr(ledger.rows[0], name) for ledger in ledgers)
        assert found == pytest.approx(expected, rel=1e-5), name
    offsets = [predict(model, x)[1].rows[0].offset for model in (product, linear)]
    assert offsets[0] == pytest.approx(offsets[1])
    assert offsets[0] == pytest.approx(float(bias.square().mean().sqrt()), rel=0.1)


@pytest.mark.parametrize("scheme", ["auto", "exact", "isometric", "data"])
def test_products_are_initialised_with_their_own_fans(scheme):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.zeros(300, 40)), nn.Parameter(torch.zeros(40, 3))

        def forward(self, x):
            return torch.tanh(x @ self.first) @ self.second

    model = Two()
    table = gs.initialize(model, normal(256, 300), scheme=scheme, generator=generator())
    assert len(table.rows) == 2
    power = float((normal(4096, 300, seed=3) @ model.first.detach()).square().mean())
    wanted = {"auto": 2 * 300 / 340, "exact": 1.0, "data": 1.0}.get(scheme, 300 * table.rows[0].variance)
    assert power == pytest.approx(wanted, rel=0.1)


# ---------------------------------------------------------------- embeddings, recurrent layers, bilinear ones
WORDS = torch.arange(32).reshape(4, 8) % 11


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_opens_the_first_stage(kind):
    model = quiet(lambda: nn.Sequential(kind(11, 6), nn.Linear(6, 3)))
    graph = trace(model, WORDS)
    first = graph.stages[0]
    assert (first.name, first.layer.kind, first.layer.weight) == ("0", "layer", "0.weight")
    assert (first.layer.fans, first.layer.units, first.source) == (None, 6, NETWORK_INPUT)
    assert graph.stages[1].source == 0


def test_positions_counted_inside_carry_no_signal():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(11, 6), nn.Embedding(8, 6)

        def forward(self, x):
            return self.words(x) + self.places(torch.arange(8))

    graph = trace(quiet(Positions), WORDS)
    assert [op.name for op in graph.operations] == ["embedding", "add"]
    assert graph.operations[1].constants == 1


RECURRENT = {
    "lstm": lambda: nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True),
    "gru": lambda: nn.GRU(6, 5, batch_first=True),
    "rnn_tanh": lambda: nn.RNN(6, 5, batch_first=True),
    "rnn_relu": lambda: nn.RNN(6, 5, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_is_one_layer_with_all_its_weights(name):
    layer = quiet(RECURRENT[name])
    graph = trace(layer, normal(4, 8, 6))
    (stage,) = graph.stages
    assert (stage.layer.name, stage.layer.kind, stage.layer.fans) == (name, "layer", None)
    assert set(stage.layer.parameters) == {parameter for parameter, _ in layer.named_parameters()}
    assert not graph.unknown


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_that_runs_several_times_is_as_many_stages(cell):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell(6, 5)

        def forward(self, x):
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state

    graph = trace(quiet(Steps), normal(4, 3, 6))
    assert [stage.name for stage in graph.stages] == ["cell", "cell #2", "cell #3"]
    assert [stage.source for stage in graph.stages] == [NETWORK_INPUT, 0, 1]


def test_a_bilinear_layer_takes_in_both():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.both = nn.Linear(20, 5), nn.Linear(20, 4), nn.Bilinear(5, 4, 3)

        def forward(self, x):
            return self.both(self.left(x), self.right(x))

    layer = trace(quiet(Both), normal(4, 20)).stages[2].layer
    assert (layer.name, layer.kind, layer.units, layer.inputs, layer.weight) == (
        "bilinear",
        "layer",
        3,
        (0, 1),
        "both.weight",
    )


# ---------------------------------------------------------------- attention
@pytest.mark.parametrize(
    ("weighed", "inside"), [(True, ["bmm", "softmax", "bmm"]), (False, ["scaled_dot_product_attention"])]
)
def test_attention_is_looked_into(weighed, inside):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=weighed)[0]

    model = quiet(Attends)
    graph = trace(model, normal(4, 5, 8))
    assert [stage.name for stage in graph.stages] == ["attention", "attention.out_proj"]
    assert [stage.layer.weight for stage in graph.stages] == ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert [stage.layer.fans for stage in graph.stages] == [(8, 24), (8, 8)]
    assert [op.name for op in graph.operations if op.name in inside] == inside
    assert not graph.unknown


def test_attention_between_two_inputs_has_a_stage_for_each_projection():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=7, batch_first=True)

        def forward(self, query, key, value):
            return self.attention(query, key, value)[0]

    graph = trace(quiet(Crossed), (normal(4, 5, 8), normal(4, 3, 6), normal(4, 3, 7)))
    assert [stage.layer.weight.rpartition(".")[2] for stage in graph.stages] == [
        "q_proj_weight", "k_proj_weight", "v_proj_weight", "weight",
    ]  # fmt: skip
    assert [stage.source for stage in graph.stages][:3] == [NETWORK_INPUT] * 3


def test_what_is_looked_into_puts_out_the_same():
    model = quiet(lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))
    x, seen = normal(4, 5, 8), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    trace(model, x)
    assert torch.equal(model(x).detach(), seen[0])


@pytest.mark.parametrize("training", [True, False])
def test_torchs_own_transformer_is_understood_whole(training):
    model = quiet(lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True)).train(training)
    words, mask = normal(4, 5, 8), torch.zeros(4, 5, dtype=torch.bool)
    mask[:, 4] = True
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    x = {"src": words, "tgt": words, "tgt_mask": causal, "src_key_padding_mask": mask, "memory_key_padding_mask": mask}
    graph = trace(model, x)
    assert not graph.unknown
    # four layers in each block and one projection of attention more, decoders attend to two
    assert sum(stage.layer.weight.endswith("out_proj.weight") for stage in graph.stages) == 2 + 4


def test_a_layers_own_attention_is_initialised_block_by_block_as_before():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(40, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    for scheme in ("auto", "data"):
        model = quiet(Attends)
        table = gs.initialize(model, normal(64, 5, 40), scheme=scheme, generator=generator())
        rows = [(row.stage.partition(" (")[2][:-1], row.variance) for row in table.rows]
        assert rows == [(role, 2 / 80) for role in ("query", "key", "value", "weight")]
        for part in model.attention.in_proj_weight.detach().chunk(3):
            assert float(part.square().mean()) == pytest.approx(2 / 80, rel=0.15)


def test_experts_picked_from_one_tensor_are_layers():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(normal(3, 8, 20))

        def forward(self, x):
            return sum(F.linear(x, expert) for expert in self.experts.unbind())

    stages = trace(Experts(), normal(4, 20)).stages
    assert [(stage.layer.weight, stage.layer.parameters, stage.layer.fans) for stage in stages] == [
        ("", ("experts",), (20, 8))
    ] * 3
