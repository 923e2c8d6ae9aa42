"""A member's session on one GPU, and the batch sizes that it runs."""

import threading
from math import prod

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from coserve_server.engines.base import Images
from coserve_server.engines.onnxruntime import cuda_driver
from coserve_server.engines.onnxruntime.cuda_graphs import CAPTURES, GRAPH_ID
from coserve_server.ensembles.ensemble import Ensemble, Member

DEVICE = "cuda"
"""ONNX Runtime's name for the device type."""
FLOAT = np.dtype(np.float32).itemsize


def batch_sizes(largest: int) -> list[int]:
    """Return the batch sizes that run on a GPU: the powers of two below the largest size, and that one.

    cuDNN makes a plan for every shape that it meets, which takes up to some hundred milliseconds. Batches of
    other sizes are padded to the next of these, whose plans are made when the member is loaded.
    """
    powers = [2**exponent for exponent in range(largest.bit_length())]
    return [*(size for size in powers if size < largest), largest]


class Upload:
    """A batch's copy on one GPU. The first member that needs it makes it; the others copy it on the GPU."""

    def __init__(self, gpu: cuda_driver.Gpu) -> None:
        self._gpu = gpu
        self._lock = threading.Lock()
        self._copies = cuda_driver.CopyStream(gpu)
        self._buffer: cuda_driver.Buffer | None = None
        self._images: Images | None = None
        self._part = slice(0)

    def fill(self, target: cuda_driver.Buffer, images: Images, part: slice) -> None:
        """Copy part of a batch to a member's own buffer; images and part tell whether it is here already."""
        with self._lock:
            array = np.ascontiguousarray(images[part])
            if self._buffer is None or self._buffer.size < array.nbytes:
                self._images = None
                self._buffer = cuda_driver.Buffer(self._gpu, array.nbytes)
            if self._images is not images or self._part != part:
                self._images = None
                self._copies.upload(self._buffer, array)
            self._copies.copy(target, self._buffer, array.nbytes)
            self._copies.wait()
            self._images = images
            self._part = part


class Replica:
    """A member's session on one GPU, with buffers made once, so that CUDA graphs can be replayed on them."""

    def __init__(
        self,
        session: ort.InferenceSession,
        ensemble: Ensemble,
        member: Member,
        upload: Upload,
        gpu: cuda_driver.Gpu,
        graphs: bool,
    ) -> None:
        """Make the buffers; `warm_up` must be called next, on the thread that will run batches.

        Args:
            graphs: whether the session captures CUDA graphs.
        """
        self._session = session
        self._upload = upload
        self._graphs = graphs
        self._sizes = batch_sizes(ensemble.max_batch_size)
        self._shape = ensemble.preprocessing.shape
        self._classes = len(ensemble.labels)
        self._copies = cuda_driver.CopyStream(gpu)
        self._images = cuda_driver.Buffer(gpu, self._sizes[-1] * prod(self._shape) * FLOAT)
        self._logits = cuda_driver.Buffer(gpu, self._sizes[-1] * self._classes * FLOAT)
        self._bindings = {size: self._bind(member, size, gpu.number) for size in self._sizes}

    def warm_up(self) -> None:
        """Run every batch size, the largest first, which takes the most memory, and capture its graph.

        Raises:
            Exception: ONNX Runtime's, or the driver's; say, there is too little memory.
        """
        use = CAPTURES.capturing if self._graphs else CAPTURES.using
        for size in reversed(self._sizes):
            with use():
                self.run(np.zeros((size, *self._shape), np.float32), slice(0, size), ort.RunOptions())

    def run(self, images: Images, part: slice, options: ort.RunOptions) -> NDArray[np.float32]:
        """Run part of a batch, padded to the next of the sizes, and return its logits `[N, C]`."""
        count = part.stop - part.start
        size = next(size for size in self._sizes if size >= count)
        if self._graphs:
            options.add_run_config_entry(GRAPH_ID, str(size))
        # What an earlier batch left in the rows after these is computed too, and ignored.
        self._upload.fill(self._images, images, part)
        self._session.run_with_iobinding(self._bindings[size], options)
        logits = np.empty((count, self._classes), np.float32)
        self._copies.download(logits, self._logits)
        self._copies.wait()
        return logits

    def _bind(self, member: Member, size: int, gpu: int) -> ort.IOBinding:
        """Bind a batch of this size to the start of the buffers."""
        binding = self._session.io_binding()
        images = (size, *self._shape)
        binding.bind_input(member.input_name, DEVICE, gpu, np.float32, images, self._images.pointer)
        logits = (size, self._classes)
        binding.bind_output(member.output_name, DEVICE, gpu, np.float32, logits, self._logits.pointer)
        return binding
