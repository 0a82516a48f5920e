import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frostline.memory import Workload, estimate
from frostline.memory.analysis import SAVED
from frostline.memory.cuda_attention import attention_kernel, cuda_attention
from frostline.memory.device import CudaIsHere, cuda_model
from frostline.tracing import fake_tensors

BATCH, LENGTH, HEADS, SIZE = 2, 96, 4, 16


def saved_bytes(function, *tensors):
    """What autograd keeps of a function, beside its inputs, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(*tensors)
    inputs = {tensor.untyped_storage()._cdata for tensor in tensors}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in inputs), output


def test_dropout_keeps_one_byte_an_element():
    with fake_tensors():
        x = torch.randn(64, 10, requires_grad=True)
        on_cpu, _ = saved_bytes(lambda x: F.dropout(x, 0.1), x)
        with cuda_model() as model:
            on_cuda, output = saved_bytes(lambda x: F.dropout(x, 0.1), x)
            assert F.dropout(x, 0.1, training=False) is x
            output.sum().backward()
    assert (on_cpu, on_cuda) == (4 * 640, 640)
    assert x.grad.shape == x.shape
    assert list(model.replaced.items()) == [("dropout keeps a mask of one byte an element", 1)]


def heads(dtype=torch.float32, size=SIZE, num_heads=HEADS):
    return torch.randn(BATCH, num_heads, LENGTH, size, dtype=dtype, requires_grad=True)


OUTPUT = BATCH * HEADS * LENGTH * SIZE
LOGSUMEXP = BATCH * HEADS * LENGTH * 4


@pytest.mark.parametrize(
    ("dtype", "kernel", "kept"),
    [
        (torch.float32, "memory-efficient", 4 * OUTPUT + LOGSUMEXP),
        (torch.bfloat16, "flash", 2 * OUTPUT + LOGSUMEXP),
    ],
)
def test_fused_attention_with_dropout_keeps_no_scores(dtype, kernel, kept):
    def attend(*tensors):
        return F.scaled_dot_product_attention(*tensors, dropout_p=0.1, is_causal=True)

    with fake_tensors():
        tensors = [heads(dtype) for _ in range(3)]
        on_cpu, _ = saved_bytes(attend, *tensors)
        with cuda_model() as model:
            on_cuda, output = saved_bytes(attend, *tensors)
            output.sum().backward()
    scores = BATCH * HEADS * LENGTH * LENGTH * dtype.itemsize
    assert on_cpu > scores
    assert kept <= on_cuda < kept + 64  # the state of the random number generator
    assert [tensor.grad.shape for tensor in tensors] == [tensor.shape for tensor in tensors]
    assert list(model.replaced) == [f"scaled_dot_product_attention by the {kernel} kernel"]


def test_which_kernel():
    query = heads()
    half = heads(torch.float16)
    mask = torch.zeros(LENGTH, LENGTH)
    assert attention_kernel(query, query, query) == "memory-efficient"
    assert attention_kernel(query, query, query, mask=mask) == "memory-efficient"
    assert attention_kernel(half, half, half) == "flash"
    assert attention_kernel(half, half, half, mask=mask.half()) == "memory-efficient"
    assert attention_kernel(half, half[:, :, :8], half[:, :, :8], is_causal=True) == "memory-efficient"
    assert attention_kernel(*[heads(size=10)] * 3) == "math"  # rows that are not aligned
    assert attention_kernel(*[heads(torch.float64)] * 3) == "math"
    assert attention_kernel(*[query[0]] * 3) == "math"
    grouped = heads(torch.float16, num_heads=2)
    assert attention_kernel(half, grouped, grouped) == "flash"
    assert attention_kernel(query, heads(num_heads=2), heads(num_heads=2)) == "math"
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_kernel(half, half, half) == "math"


@pytest.mark.parametrize("length", [96, 90])
def test_a_mask_of_truth_values_becomes_one_of_numbers_with_aligned_rows(length):
    with fake_tensors():
        tensors = [heads(), *(torch.randn(BATCH, HEADS, length, SIZE) for _ in range(2))]
        mask = torch.ones(LENGTH, length, dtype=torch.bool)
        kept, (output, kernel) = saved_bytes(
            lambda *tensors: cuda_attention(*tensors, attn_mask=mask, dropout_p=0.1), *tensors
        )
        output.sum().backward()
    assert kernel == "memory-efficient"
    assert kept - 4 * OUTPUT - LOGSUMEXP - 4 * LENGTH * 96 < 64


def test_attention_inside_other_functions_is_replaced_too():
    with fake_tensors(), cuda_model() as model:
        attention = nn.MultiheadAttention(32, 4, dropout=0.1, batch_first=True)
        x = torch.randn(2, 8, 32)
        attention(x, x, x, need_weights=False)[0].sum().backward()
    assert model.replaced == {"scaled_dot_product_attention by the memory-efficient kernel": 1}


def test_rms_norm_keeps_one_number_a_row():
    with fake_tensors():
        x, weight = torch.randn(6, 32, requires_grad=True), torch.ones(32, requires_grad=True)
        on_cpu, _ = saved_bytes(lambda x, weight: F.rms_norm(x, (32,), weight), x, weight)
        with cuda_model():
            on_cuda, output = saved_bytes(lambda x, weight: F.rms_norm(x, (32,), weight), x, weight)
            output.sum().backward()
    assert on_cuda == 6 * 4 < on_cpu
    assert (x.grad.shape, weight.grad.shape) == (x.shape, weight.shape)


def test_autocast_is_that_of_cuda():
    with fake_tensors(), cuda_model():
        x, linear = torch.randn(4, 8), nn.Linear(8, 8)
        with torch.autocast("cuda"):
            hidden = linear(x)
            assert hidden.dtype is torch.float16
            assert F.layer_norm(hidden, (8,)).dtype is torch.float32
            assert hidden.softmax(-1).dtype is torch.float32
            assert torch.softmax(hidden, -1, torch.float16).dtype is torch.float16
            assert hidden.sum().dtype is torch.float32
            assert (hidden + 1).dtype is F.gelu(hidden).dtype is torch.float16
    hidden = torch.randn(4, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu"):
        assert hidden.softmax(-1).dtype is torch.bfloat16


def test_cuda_in_arguments_is_here():
    with CudaIsHere("cpu"):
        x = torch.zeros(2, device="cuda").cuda().to("cuda:0", torch.float64).to(device=torch.device("cuda"))
        model = nn.Linear(2, 2).cuda().to("cuda")
        assert x.device.type == model.weight.device.type == "cpu"
        assert x.dtype is torch.float64


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.place = torch.zeros(32, device="cpu")

    def forward(self, x):
        return self.layers(x + self.place).square().mean()


def workload(make_optimizer=torch.optim.AdamW, device="cpu"):
    def build(model):
        x = torch.randn(4, 64, 32, device=device)
        optimizer = make_optimizer(model.to(device).parameters())

        def step():
            model(x).backward()
            optimizer.step()
            optimizer.zero_grad()

        return Workload(step=step, model=model, optimizers=(optimizer,), inputs=x)

    return build


def test_a_step_written_for_cuda_is_predicted_for_cuda():
    on_cpu = estimate(Encoder, workload())
    report = estimate(Encoder, workload(device="cuda"), device="cuda")
    assert (report.device, report.method) == ("cuda", "predicted")
    assert report.by_category["parameters"] == on_cpu.by_category["parameters"]
    assert report.by_category[SAVED] < 0.75 * on_cpu.by_category[SAVED]
    assert report.allocator.peak_reserved_bytes % 2**21 == 0
    assert report.peak_bytes <= report.allocator.peak_allocated_bytes <= report.allocator.peak_reserved_bytes
    assert any("dropout keeps a mask of one byte" in line for line in report.assumes)
    assert any("cuBLAS workspaces" in line for line in report.not_seen)
    assert on_cpu.assumes == () and on_cpu.allocator is None


def test_optimizers_take_their_foreach_implementation():
    def peak_at(device):
        return estimate(lambda: nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))), linear, device=device)

    def linear(model):
        x, optimizer = torch.randn(1, 64), torch.optim.AdamW(model.parameters())

        def step():
            model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return Workload(step=step, model=model, optimizers=(optimizer,), inputs=x)

    on_cpu, on_cuda = peak_at("cpu"), peak_at("cuda")
    # The square roots of all second moments at once, not one after another.
    assert on_cuda.by_category["temporaries"] >= 4 * on_cpu.by_category["temporaries"] // 2
    assert "aten._foreach" in on_cuda.peak_at


def test_step_counts_of_optimizers_are_on_the_cpu():
    report = estimate(Encoder, workload(), device="cuda")
    assert report.by_category["optimizer state"] == 2 * report.by_category["parameters"]
