"""What torch itself saves is read to the bit, without torch."""

import collections

import numpy as np
import pytest

from model.weights import WeightsError, source, torch_file

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-parity.txt")


def tensors():
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(6, 8, generator=generator)
    layer = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    return collections.OrderedDict(
        grid=grid,
        turned=grid.t(),
        part=grid[1:5:2, 3:],
        row=grid[2],
        wide=grid[:1].expand(3, 8),
        half=grid.half(),
        brain=grid.bfloat16(),
        brain_part=grid.bfloat16()[:, ::3],
        double=grid.double(),
        parameter=torch.nn.Parameter(grid[0].clone()),
        brain_parameter=torch.nn.Parameter(grid.bfloat16()),
        channels_last=torch.randn(2, 3, 4, 5, generator=generator).contiguous(memory_format=torch.channels_last),
        integers=torch.arange(5),
        bytes=torch.arange(5, dtype=torch.uint8),
        flags=torch.tensor([True, False]),
        scalar=torch.tensor(3.5),
        none=torch.zeros(0, 4),
        **layer.state_dict(),
    )


def expected(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"model": t, "epoch": 1}, lambda t: {"state_dict": dict(t)}])
def test_both_formats_are_read_as_torch_reads_them(tmp_path, zipped, wrap):
    stored = tensors()
    torch.save(wrap(stored), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    arrays = source.read(str(tmp_path / "w.pth")).arrays
    assert list(arrays) == list(stored)
    for name, tensor in stored.items():
        assert arrays[name].shape == tuple(tensor.shape), name
        np.testing.assert_array_equal(arrays[name], expected(tensor), err_msg=name)
        assert arrays[name].dtype == expected(tensor).dtype, name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_module_in_training_is_read(tmp_path, zipped, protocol):
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    torch.save(
        {"epoch": 3, "state_dict": module.state_dict(), "optimizer": optimizer.state_dict(), "lr": 0.1, "name": "x"},
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=zipped,
        pickle_protocol=protocol,
    )
    arrays = torch_file.read(tmp_path / "w.pt")
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy(), err_msg=name)
    assert arrays["1.num_batches_tracked"] == 1


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"names torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict"):
        source.read(str(tmp_path / "w.pth"))
