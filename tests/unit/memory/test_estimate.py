import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frostline.errors import StepError
from frostline.memory import Workload, estimate, measure


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(500, 32)
        self.head = nn.Linear(32, 500, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids).tanh())


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        blocks = (nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 32)) for _ in range(4))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def mlp():
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))


def convnet():
    block = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    return nn.Sequential(*block, nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 6 * 6, 5))


def encoder():
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def square(output, _):
    return output.square().mean()


def cross_entropy(output, targets):
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def workload_of(make_optimizer, make_inputs, loss_of):
    def build(model):
        optimizer, inputs = make_optimizer(model.parameters()), make_inputs()

        def step():
            optimizer.zero_grad()
            loss = loss_of(model(inputs[0]), inputs[-1])
            loss.backward()
            optimizer.step()

        return Workload(step=step, model=model, optimizers=(optimizer,), inputs=inputs)

    return build


ADAMW = torch.optim.AdamW
CASES = {
    "mlp": (mlp, workload_of(ADAMW, lambda: (torch.randn(64, 32),), square)),
    "convnet with BatchNorm": (
        convnet,
        workload_of(momentum, lambda: (torch.randn(4, 3, 16, 16), torch.randint(0, 5, (4,))), cross_entropy),
    ),
    "transformer with dropout": (encoder, workload_of(ADAMW, lambda: (torch.randn(4, 16, 32),), square)),
    "tied embedding": (Tied, workload_of(ADAMW, lambda: (torch.randint(0, 500, (4, 16)),), cross_entropy)),
    "checkpointed": (Checkpointed, workload_of(ADAMW, lambda: (torch.randn(64, 32),), square)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_prediction_is_the_measurement_to_the_byte(case):
    build_model, build_workload = CASES[case]
    torch.manual_seed(0)
    real = build_workload(build_model())
    measured = measure(real.step, real.model, optimizers=real.optimizers, inputs=real.inputs)
    predicted = estimate(build_model, build_workload)
    for name in (
        "peak_bytes",
        "resident_bytes",
        "by_category",
        "by_module",
        "peak_at",
        "timeline",
        "num_ops",
    ):
        assert getattr(predicted, name) == getattr(measured, name), name
    assert (measured.method, predicted.method) == ("measured", "predicted")


def test_a_model_of_many_gigabytes_needs_none():
    build_workload = workload_of(ADAMW, lambda: (torch.randn(16, 20_000),), square)
    report = estimate(lambda: nn.Linear(20_000, 20_000), build_workload)
    assert report.by_category["parameters"] == 4 * (20_000 * 20_000 + 20_000)


def test_a_guessed_value_is_reported():
    def build_workload(model):
        x = torch.randn(4, 32)
        return Workload(step=lambda: model(x).sum().item(), model=model, inputs=x)

    report = estimate(mlp, build_workload)
    assert any("guessed as 1.0, at test_estimate.py:" in line and "(2 times)" in line for line in report.not_seen)


def test_what_a_workload_leaves_out_is_reported():
    report = estimate(mlp, lambda model: Workload(step=lambda: None, model=model, not_seen=("long answers",)))
    assert "long answers" in report.not_seen


def test_an_lstm_is_refused_by_name():
    with pytest.raises(StepError) as raised:
        estimate(
            lambda: nn.ModuleDict({"memory": nn.LSTM(4, 4)}),
            lambda model: Workload(step=lambda: None, model=model),
        )
    assert "LSTM runs in a oneDNN kernel" in str(raised.value)
    assert "where  memory" in str(raised.value) and "do     measure a real step" in str(raised.value)


def test_a_size_that_depends_on_values_is_refused_by_operator():
    def build_workload(model):
        x = torch.randn(4, 32)
        return Workload(step=lambda: model(x).nonzero(), model=model)

    with pytest.raises(StepError, match=r"the size of what aten\.nonzero\.default returns depends on values"):
        estimate(mlp, build_workload)


def test_a_bound_takes_the_place_of_values():
    def build_workload(model):
        x = torch.randn(1000, 32)
        return Workload(step=lambda: x[x > 0], model=model, inputs=x)

    report = estimate(mlp, build_workload, bound=1000 * 32)
    assert any("returns, taken as 32000, at test_estimate.py:" in line for line in report.not_seen)
    fewer = estimate(mlp, build_workload, bound=10_000)
    assert report.peak_bytes - fewer.peak_bytes == 22_000 * 4
    with pytest.raises(StepError, match="give bound=N, the most entries it returns, or measure a real step"):
        estimate(mlp, build_workload)


@pytest.mark.parametrize("module", [nn.GRU, nn.RNN], ids=lambda module: module.__name__)
def test_recurrent_nets_without_a_kernel_of_their_own_are_predicted_on_the_cpu_and_refused_on_cuda(module):
    def build_model():
        return nn.ModuleDict({"memory": module(32, 32)})

    def build_workload(model):
        x, optimizer = torch.randn(6, 4, 32), ADAMW(model.parameters())

        def step():
            model["memory"](x)[0].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return Workload(step=step, model=model, optimizers=(optimizer,), inputs=x)

    real = build_workload(build_model())
    measured = measure(real.step, real.model, optimizers=real.optimizers, inputs=real.inputs)
    assert estimate(build_model, build_workload).peak_bytes == measured.peak_bytes
    with pytest.raises(StepError, match=rf"{module.__name__} runs in a cuDNN kernel") as raised:
        estimate(build_model, build_workload, device="cuda")
    assert "where  memory" in str(raised.value)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says that it takes its own implementation
@pytest.mark.parametrize(("proj_size", "dtype"), [(4, torch.float32), (0, torch.float64)])
def test_an_lstm_with_projections_or_in_float64_has_no_kernel_of_its_own(proj_size, dtype):
    def build_model():
        return nn.LSTM(32, 16, proj_size=proj_size, dtype=dtype)

    def build_workload(model):
        x = torch.randn(6, 4, 32, dtype=dtype)
        return Workload(step=lambda: model(x)[0].sum().backward(), model=model, inputs=x)

    real = build_workload(build_model())
    measured = measure(real.step, real.model, inputs=real.inputs)
    assert estimate(build_model, build_workload).peak_bytes == measured.peak_bytes


def test_a_check_of_values_that_raises_is_taken_not_to():
    def build_workload(model):
        x = torch.randn(4, 32)

        def step():
            if (x > 100).any():
                raise ValueError("too large")
            model(x).sum().backward()

        return Workload(step=step, model=model, inputs=x)

    report = estimate(mlp, build_workload)
    assert any("guessed as False, at test_estimate.py:" in line for line in report.not_seen)


def test_an_error_of_the_step_itself_is_the_users():
    def build_workload(model):
        def step():
            bool(torch.zeros(2).any())
            raise KeyError("labels")

        return Workload(step=step, model=model)

    with pytest.raises(KeyError, match="labels"):
        estimate(mlp, build_workload)


def test_a_model_may_be_converted_and_clipped():
    def build_workload(model):
        model.to("cpu", torch.bfloat16)
        x, optimizer = torch.randn(4, 32, dtype=torch.bfloat16), ADAMW(model.parameters())

        def step():
            model(x).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return Workload(step=step, model=model, optimizers=(optimizer,), inputs=x)

    real = build_workload(mlp())
    measured = measure(real.step, real.model, optimizers=real.optimizers, inputs=real.inputs)
    predicted = estimate(mlp, build_workload)
    assert predicted.by_category == measured.by_category
    assert (predicted.peak_bytes, predicted.num_ops) == (measured.peak_bytes, measured.num_ops)
