"""Memory, one stream and graphs of CUDA: the few calls that an engine needs, each of them checked.

Importing this needs `cuda-bindings`; calling it needs a GPU. All is on the first GPU that CUDA
sees, which `CUDA_VISIBLE_DEVICES` chooses.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import runtime
from numpy.typing import NDArray

from mgsd_core.runtime.tensorrt_library import EngineError

#: CUDA's own allocations begin at multiples of this; so does every tensor inside one [bytes].
ALIGNMENT = 256

_UP = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
_DOWN = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
_ACROSS = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice


class CudaError(EngineError):
    """CUDA refused a call; the message names it."""


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Return what a function of CUDA's gives, if anything.

    Raises:
        CudaError: it reports an error.
    """
    error, *values = function(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        text = runtime.cudaGetErrorString(error)[1]
        text = text.decode() if isinstance(text, bytes) else str(text)
        raise CudaError(f"CUDA: {function.__name__}: {text}")
    return values[0] if values else None


def device() -> tuple[str, str]:
    """Return the name of the first GPU and its compute capability, such as "8.9"."""
    if call(runtime.cudaGetDeviceCount) < 1:
        raise CudaError("CUDA sees no GPU")
    about = call(runtime.cudaGetDeviceProperties, 0)
    return about.name.rstrip(b"\0").decode(), f"{about.major}.{about.minor}"


def aligned(size: int) -> int:
    """Return the least multiple of `ALIGNMENT` that is not below `size`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class DeviceMemory:
    """Bytes on the GPU, all 0 at first; freed with this object.

    Attributes:
        address: of the first.
        size: their number.
    """

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        self.address = int(call(runtime.cudaMalloc, self.size))
        weakref.finalize(self, runtime.cudaFree, self.address)
        call(runtime.cudaMemset, self.address, 0, self.size)
        # No stream of ours waits for that by itself.
        call(runtime.cudaDeviceSynchronize)


class PinnedMemory:
    """Bytes in the computer's memory that the GPU copies by itself; freed with this object.

    Attributes:
        address: of the first.
        bytes: they, uint8 [size]. Views of it must not outlive this object.
    """

    def __init__(self, size: int) -> None:
        size = max(size, 1)
        self.address = int(call(runtime.cudaHostAlloc, size, runtime.cudaHostAllocDefault))
        weakref.finalize(self, runtime.cudaFreeHost, self.address)
        memory = (ctypes.c_uint8 * size).from_address(self.address)
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        self.bytes[:] = 0


class Stream:
    """Work for the GPU, done in the order in which it is given here.

    Attributes:
        handle: of CUDA's stream, as TensorRT takes it.
    """

    def __init__(self) -> None:
        stream = call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        self._stream = stream
        self.handle = int(stream)
        weakref.finalize(self, runtime.cudaStreamDestroy, stream)

    def up(self, to: int, source: int, size: int) -> None:
        """Copy `size` bytes from pinned memory to the GPU."""
        call(runtime.cudaMemcpyAsync, to, source, size, _UP, self._stream)

    def down(self, to: int, source: int, size: int) -> None:
        """Copy `size` bytes from the GPU to pinned memory."""
        call(runtime.cudaMemcpyAsync, to, source, size, _DOWN, self._stream)

    def rows(self, to: int, step: int, source: int, pitch: int, width: int, count: int) -> None:
        """Copy `count` rows of `width` bytes on the GPU.

        Args:
            to: where the first goes.
            step: from there to where the next goes [bytes].
            source: of the first.
            pitch: from there to the next [bytes].
            width: of a row [bytes].
            count: of rows.
        """
        call(
            runtime.cudaMemcpy2DAsync, to, step, source, pitch, width, count, _ACROSS, self._stream
        )

    def clear(self, address: int, size: int) -> None:
        """Set `size` bytes on the GPU to 0."""
        call(runtime.cudaMemsetAsync, address, 0, size, self._stream)

    def wait(self) -> None:
        """Wait until all is done."""
        call(runtime.cudaStreamSynchronize, self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` gives to the stream, without doing it; return what does it.

        Raises:
            CudaError, EngineError: something of it cannot be recorded. The stream is as before.
        """
        # Other threads may go on using CUDA meanwhile.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(runtime.cudaStreamBeginCapture, self._stream, mode)
        try:
            work()
        except BaseException:
            runtime.cudaStreamEndCapture(self._stream)
            runtime.cudaGetLastError()
            raise
        recorded = call(runtime.cudaStreamEndCapture, self._stream)
        graph = call(runtime.cudaGraphInstantiate, recorded, 0)
        call(runtime.cudaGraphDestroy, recorded)
        stream = self._stream

        def launch() -> None:
            call(runtime.cudaGraphLaunch, graph, stream)

        weakref.finalize(launch, runtime.cudaGraphExecDestroy, graph)
        return launch
