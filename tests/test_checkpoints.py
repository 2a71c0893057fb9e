"""Weights files of others: what is read, and what is refused before it can run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from geoseg.errors import ModelError
from geoseg.models import checkpoints
from geoseg.models.checkpoints import read_checkpoint

ARRAYS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b.bias": np.array([0.5, -1.5], np.float64),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "half": np.array([1.5], np.float16),
    "steps": np.array(7),
    "big_endian": np.arange(3, dtype=">f4"),
    "flags": np.array([True, False]),
    "small": np.arange(4, dtype=np.uint8),
    "empty": np.zeros((0, 4), np.float32),
}


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), np.asarray(value), err_msg=name)
        assert found[name].is_contiguous()


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(tmp_path, protocol):
    zoo = {"model": ARRAYS, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    found = read_checkpoint(write(tmp_path / "zoo.pkl", zoo, protocol))
    same(found.weights, ARRAYS)
    assert found.author == "Detectron2 Model Zoo"
    plain = read_checkpoint(write(tmp_path / "plain.pkl", OrderedDict(ARRAYS), protocol))
    same(plain.weights, ARRAYS)
    assert plain.author == ""


def test_pickles_of_numpy_1(tmp_path):
    new = pickle.dumps({"a": ARRAYS["a.weight"]}, 2)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "old.pkl").write_bytes(old)
    same(read_checkpoint(tmp_path / "old.pkl").weights, {"a": ARRAYS["a.weight"]})
    five = pickle.dumps({"a": ARRAYS["a.weight"]}, 5)
    assert b"_frombuffer" in five
    # the length of the frame and of the name change with the name
    found = next(
        a
        for op, a, _ in pickletools.genops(five)
        if op.name == "SHORT_BINUNICODE" and "_core" in str(a)
    )
    assert found == "numpy._core.numeric"
    text = five.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
    at = text.index(b"\x95") + 1
    text = (
        text[:at]
        + struct.pack("<Q", struct.unpack("<Q", text[at : at + 8])[0] - 1)
        + text[at + 8 :]
    )
    (tmp_path / "old5.pkl").write_bytes(text)
    same(read_checkpoint(tmp_path / "old5.pkl").weights, {"a": ARRAYS["a.weight"]})


def test_a_pickle_of_python_2(tmp_path):
    # what cPickle of Python 2 writes: its strings are bytes, also the content of the array
    values = np.array([1.0, -2.0, 200.5], "<f4")
    raw = values.tobytes()
    text = b"".join(
        [
            b"\x80\x02}q\x00(U\x05blobsq\x01}q\x02U\x06conv_wq\x03",
            b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87Rq\x06",
            b"(K\x01K\x03\x85cnumpy\ndtype\nq\x07U\x02f4K\x00K\x01\x87R",
            b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tb",
            b"su.",
        ]
    )  # fmt: skip
    (tmp_path / "py2.pkl").write_bytes(text)
    same(read_checkpoint(tmp_path / "py2.pkl").weights, {"conv_w": values})
    keys = write(tmp_path / "keys.pkl", {b"a": ARRAYS["a.weight"]})
    same(read_checkpoint(keys).weights, {"a": ARRAYS["a.weight"]})


def test_training_checkpoints_of_torch(tmp_path):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    wanted = {k: v.numpy() for k, v in module.state_dict().items()}
    state = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": 9,
        "__author__": 3,
    }
    for name, content in (
        ("train.pth", state),
        ("plain.pth", module.state_dict()),
        ("wrapped.pt", {"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}),
        ("parameters.pt", dict(module.named_parameters())),
    ):
        torch.save(content, tmp_path / name)
        found = read_checkpoint(tmp_path / name)
        same(found.weights, wanted)
        assert found.author == ""
        assert not any(v.requires_grad for v in found.weights.values())
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    same(read_checkpoint(tmp_path / "old.pth").weights, wanted)
    save_file(module.state_dict(), tmp_path / "x.safetensors")
    same(read_checkpoint(tmp_path / "x.safetensors").weights, wanted)


# --- what would run code ---------------------------------------------------------------------


class Calls:
    """Pickled, it is the call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def payloads(mark):
    """Return name, pickle and what it wants; each would leave a file behind."""
    touch = f"open({str(mark)!r}, 'w').close()"
    command = f"touch {mark}"
    yield "system", pickle.dumps(Calls(os.system, command)), f"{os.system.__module__}.system"
    yield "eval", pickle.dumps(Calls(eval, touch), 2), "__builtin__.eval"
    yield "exec", pickle.dumps({"model": {"a": Calls(exec, touch)}}, 4), "builtins.exec"
    inner = pickle.dumps(Calls(os.system, command))
    yield "numpy", pickle.dumps(Calls(np.lib.format.read_array, io.BytesIO)), "read_array"
    yield "loads", pickle.dumps(Calls(pickle.loads, inner)), "_pickle.loads"
    yield "torch", pickle.dumps(Calls(torch.storage._load_from_bytes, inner)), "_load_from_bytes"
    # protocol 4 follows dots in names, so that an allowed module may lead to any other one
    for path in ("core.os.system", "ndarray.__class__", "lib.npyio.os.system"):
        found = b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(path)]) + path.encode() + b"\x93"
        yield (
            path,
            found + b"\x8c" + bytes([len(command)]) + command.encode() + b"\x85R.",
            f"numpy.{path}",
        )
    yield (
        "getattr",
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR.",
        "__builtin__.getattr",
    )
    yield (
        "codec",
        pickle.dumps(Calls(__import__("_codecs").encode, "x", "rot13"), 2),
        "_codecs.encode to 'rot13'",
    )
    yield "instance", b"(S'" + command.encode() + b"'\nios\nsystem\n.", "os.system"
    yield "storage", b"S'elsewhere'\nQ.", "the storage elsewhere"


@pytest.mark.parametrize("number", range(13))
def test_a_pickle_cannot_call_anything(tmp_path, number):
    mark = tmp_path / "ran"
    name, text, wanted = list(payloads(mark))[number]
    (tmp_path / "evil.pkl").write_bytes(text)
    with pytest.raises(ModelError, match="wants to call") as error:
        read_checkpoint(tmp_path / "evil.pkl")
    assert wanted in str(error.value), name
    assert "nothing in it was run" in str(error.value)
    assert not mark.exists()


def test_the_payloads_are_real(tmp_path):
    # without the list two of them do run: the test above can fail
    for number in (0, 2):
        mark = tmp_path / f"ran{number}"
        pickle.loads(list(payloads(mark))[number][1])
        assert mark.exists()
    assert len(list(payloads(tmp_path))) == 13


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_cannot_call_anything(tmp_path, zipped):
    mark = tmp_path / "ran"
    torch.save(
        {"model": {"a": torch.ones(1)}, "extra": Calls(os.system, f"touch {mark}")},
        tmp_path / "evil.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(
        ModelError, match=rf"wants to call {os.system.__module__}.system.*nothing in it was run"
    ):
        read_checkpoint(tmp_path / "evil.pth")
    assert not mark.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert mark.exists(), "the payload is real"


@pytest.mark.parametrize(
    "text",
    [
        # the state of a stand-in, of an array, of a type; calls with the wrong arguments
        b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x0c__defaults__K\x01s\x86b.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)RK\x01b.",
        b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.",
        b"\x80\x02cnumpy\ndtype\n)R.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x02ccollections\nOrderedDict\nN}U\x01aK\x01s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.",
        b"\x80\x04\x8c\x05numpy\x94\x93.",
        b"",
        b"not a pickle",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 50),
        b"\x80\x02]" + b"]" * 5000 + b"a" * 5000 + b".",
    ],
)
def test_made_up_pickles(tmp_path, text):
    (tmp_path / "x.pkl").write_bytes(text)
    with pytest.raises(ModelError, match=r"x\.pkl (is not a readable pickle|holds)"):
        read_checkpoint(tmp_path / "x.pkl")
    assert not hasattr(OrderedDict, "a")


# --- what is broken --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "holds no weights"),
        ([1, 2], "holds a list; expected a table of weights"),
        ({"model": {"a": ARRAYS["a.weight"], "b": "text"}}, r"holds what is no weight: b \(str\)"),
        ({"a": np.array(["x"])}, "an array of type '<U1', not of numbers"),
        ({"a": np.array([None])}, "an array of objects, not of numbers"),
        ({"a": np.zeros(2, [("x", "f4")])}, "an array of records, not of numbers"),
        ({"a": np.zeros(2, np.complex64)}, "an array of type '<c8', not of numbers"),
        (
            {f"w{i}": np.full(2, np.nan, np.float32) for i in range(7)},
            "7 weights hold values that are not finite: w0, w1, w2, w3, w4 and 2 more",
        ),
        ({"good": np.ones(1), "bad": np.array([1, np.inf])}, "1 weights hold .* not finite: bad;"),
    ],
)
def test_pickles_of_other_things(tmp_path, content, message):
    with pytest.raises(ModelError, match=message):
        read_checkpoint(write(tmp_path / "x.pkl", content))


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "x.pt", "x.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_files_cut_short(tmp_path, name, share):
    path = tmp_path / name
    weights = {"a": torch.arange(4000.0), "b": torch.ones(3, 5)}
    if name == "x.pkl":
        write(path, {k: v.numpy() for k, v in weights.items()}, 4)
    elif name == "x.safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=name == "x.pth")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ModelError, match=r"is not a readable"):
        read_checkpoint(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(
        ModelError, match=r"x.onnx is no weights file; expected one of .safetensors"
    ):
        read_checkpoint(tmp_path / "x.onnx")
    with pytest.raises(ModelError, match=r"x.pth does not exist; check the path"):
        read_checkpoint(tmp_path / "x.pth")


def test_files_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_BYTES", 20_000)
    write(tmp_path / "x.pkl", {"a": np.zeros(10_000)})
    with pytest.raises(ModelError, match=r"x.pkl has 80,\d+ bytes; 20,000 is the limit"):
        read_checkpoint(tmp_path / "x.pkl")
    # a tensor that repeats one number: small on disk, large when it is written out
    torch.save({"a": torch.zeros(1).expand(1_000_000)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"x.pth holds 4,000,000 bytes of weights"):
        read_checkpoint(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y/data.pkl", b"0" * 1_000_000)
    with pytest.raises(ModelError, match=r"y.pth unpacks to 1,000,000 bytes"):
        read_checkpoint(tmp_path / "y.pth")
