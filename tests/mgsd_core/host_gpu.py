"""A GPU made of this computer's memory, for what `TrtEngine` does around TensorRT.

Stands in for CUDA's calls and for TensorRT's runtime; ONNX Runtime computes. It is stricter than
the real ones: every copy and every tensor must lie inside memory that was allocated, fresh memory
holds garbage, and what a CUDA graph recorded is replayed with the addresses of that moment.
"""

from __future__ import annotations

import ctypes
import math
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
from cuda.bindings import runtime

from mgsd_core.runtime.engine_cache import Lengths

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_OK = runtime.cudaError_t.cudaSuccess


class HostCuda:
    """CUDA's runtime, as far as `mgsd_core.runtime.cuda` calls it."""

    cudaError_t = runtime.cudaError_t
    cudaStreamCaptureMode = runtime.cudaStreamCaptureMode
    cudaHostAllocDefault, cudaStreamNonBlocking = 0, 1

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.recording: list | None = None
        self.launches = 0

    def inside(self, address: int, size: int) -> None:
        for start, array in self.memory.items():
            if start <= address and address + size <= start + array.nbytes:
                return
        raise AssertionError(f"{size} bytes at {address} are nobody's")

    def do(self, work):
        if self.recording is None:
            work()
        else:
            self.recording.append(work)
        return (_OK,)

    def cudaMalloc(self, size):
        # Freed with this object: an address that is used too late is still inside.
        raw = np.full(size + 256, 0xFF, np.uint8)
        array = raw[(start := -raw.ctypes.data % 256) : start + size]
        self.memory[array.ctypes.data] = array
        return _OK, array.ctypes.data

    def cudaHostAlloc(self, size, flags):
        return HostCuda.cudaMalloc(self, size)

    def cudaFree(self, address):
        del self.memory[address]
        return (_OK,)

    cudaFreeHost = cudaFree

    def cudaMemset(self, address, value, size):
        self.inside(address, size)
        ctypes.memset(address, value, size)
        return (_OK,)

    def cudaMemsetAsync(self, address, value, size, stream):
        return self.do(lambda: self.cudaMemset(address, value, size))

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        def copy():
            self.inside(to, size)
            self.inside(source, size)
            ctypes.memmove(to, source, size)

        return self.do(copy)

    def cudaMemcpy2DAsync(self, to, step, source, pitch, width, count, kind, stream):
        assert width <= step and width <= pitch
        for i in range(count):
            self.cudaMemcpyAsync(to + i * step, source + i * pitch, width, kind, stream)
        return (_OK,)

    def cudaStreamCreateWithFlags(self, flags):
        return _OK, 7

    def cudaStreamDestroy(self, stream):
        return (_OK,)

    def cudaStreamSynchronize(self, stream):
        assert self.recording is None, "nothing is waited for while a graph is recorded"
        return (_OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (_OK,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        return _OK, recorded

    def cudaGraphInstantiate(self, graph, flags):
        return _OK, graph

    def cudaGraphDestroy(self, graph):
        return (_OK,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        for work in graph:
            work()
        return (_OK,)

    def cudaDeviceSynchronize(self):
        return (_OK,)

    def cudaGetLastError(self):
        return (_OK,)

    def cudaGetErrorString(self, error):
        return _OK, b"as asked for"


class HostTensorRT:
    """TensorRT's runtime, whose engines are ONNX graphs as bytes.

    Attributes:
        capturable: what contexts say of it.
    """

    ILogger = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="mine")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(NONE="none")

    def __init__(self, cuda: HostCuda, lengths: Lengths) -> None:
        self.cuda, self.lengths, self.capturable = cuda, lengths, True
        self.given: list[bytes] = []

    def Runtime(self, logger):
        return SimpleNamespace(deserialize_cuda_engine=lambda model: _Engine(self, bytes(model)))

    def nptype(self, kind):
        return _TYPES[kind]


class _Engine:
    def __init__(self, trt: HostTensorRT, model: bytes) -> None:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self.trt, self.session = trt, ort.InferenceSession(model, options)
        outputs = [o for o in self.session.get_outputs() if o.name != "logits"]
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.tensors = {**self.inputs, **{o.name: o for o in outputs}}
        self.num_io_tensors = len(self.tensors)
        self.device_memory_size_v2 = 1000

    def get_tensor_name(self, i):
        return list(self.tensors)[i]

    def get_tensor_shape(self, name):
        return [side if isinstance(side, int) else -1 for side in self.tensors[name].shape]

    def get_tensor_dtype(self, name):
        return self.tensors[name].type

    def create_execution_context(self, strategy):
        assert "mine" in (strategy, getattr(strategy, "strategy", ""))
        return _Context(self)

    def create_runtime_config(self):
        config = SimpleNamespace(
            set_execution_context_allocation_strategy=lambda to: setattr(config, "strategy", to),
            create_runtime_cache=lambda: SimpleNamespace(
                deserialize=self.trt.given.append, serialize=lambda: b"kernels"
            ),
            set_runtime_cache=lambda kernels: True,
        )
        return config


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.addresses, self.profile = engine, {}, 0
        self.shapes = {
            name: i.shape
            for name, i in engine.inputs.items()
            if all(isinstance(side, int) for side in i.shape)
        }

    def set_device_memory(self, address, size):
        assert size >= self.engine.device_memory_size_v2
        self.engine.trt.cuda.inside(address, size)
        self.ready = True

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return True

    def is_stream_capturable(self, stream):
        return self.engine.trt.capturable

    def set_tensor_address(self, name, address):
        assert name in self.engine.tensors and address % 256 == 0
        self.addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        sides = self.engine.inputs[name].shape
        assert len(sides) == len(shape)
        lengths = self.engine.trt.lengths if self.profile else Lengths(1, 1, 1)
        most = {"S": lengths.most, "N": lengths.asked, "Smax + S": 1 << 20}
        for side, found in zip(sides, shape, strict=True):
            assert side == found or (isinstance(side, str) and 1 <= found <= most[side])
        self.shapes[name] = list(shape)
        return True

    def execute_async_v3(self, stream):
        assert self.ready
        # As a CUDA graph has it: what holds now holds whenever it is replayed.
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        self.engine.trt.cuda.do(lambda: self._run(addresses, shapes))
        return True

    def _run(self, addresses, shapes):
        tensors = self.engine.tensors
        feeds = {
            name: self._view(addresses[name], shapes[name], tensors[name].type).copy()
            for name in self.engine.inputs
        }
        names = [name for name in tensors if name not in self.engine.inputs]
        for name, value in zip(names, self.engine.session.run(names, feeds), strict=True):
            past = name.replace("present", "past")
            if past in shapes and shapes[past] == list(value.shape):
                assert addresses[name] == addresses[past], "the cache is updated in place"
            self._view(addresses[name], value.shape, tensors[name].type)[:] = value

    def _view(self, address, shape, kind):
        size = math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
        self.engine.trt.cuda.inside(address, size)
        memory = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(memory, _TYPES[kind]).reshape(shape)
