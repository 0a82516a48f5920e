import pytest
import torch

from frostline.errors import DeviceError
from frostline.training import Group


def test_alone_every_exchange_changes_nothing(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    group = Group.open("cpu")
    assert (group.rank, group.world_size, group.is_main, group.device) == (0, 1, True, torch.device("cpu"))
    tensor = torch.arange(3.0)
    assert group.sum_(tensor) is tensor
    assert torch.equal(tensor, torch.arange(3.0))
    group.broadcast_([tensor])
    assert group.total(2.5) == 2.5
    assert group.gather({"a": 1}) == [{"a": 1}]
    group.barrier()
    group.close()
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(DeviceError, match="there is no cuda:0: torch sees 0 GPUs\n  do     use the device cpu"):
        Group.open("cuda")
