"""What a card's allocator holds for a micro-batch, more than its tensors: their memory replayed on a model of it."""

from hf_accum.tuner.allocator import Allocate, CachingAllocator, Free, replay
from hf_accum.tuner.kernels import Capability, workspace_bytes
from hf_accum.tuner.tracing import Tracer
from hf_accum.tuner.workload import Workload

_NUM_WINDOWS = 2  # in the first the allocator grows; the second finds what that left


def reserved_bytes(workload: Workload, capability: Capability, num_examples: int, length: int) -> int:
    """The most that CUDA's allocator reserves, with expandable segments, and cuBLAS's workspaces.

    The weights, the gradients and the optimizer's state lie there first. Then come micro-batches of this size, with
    forward, backward and evaluation. Blocks are rounded, and between uneven ones there is room that nothing fits.
    Predicted by the allocator's rules (`hf_accum.tuner.allocator`); not measured on a GPU.

    Raises:
        CannotTrace: if the model cannot be traced.
    """
    events: list[Allocate | Free] = []

    def record(number: int, num_bytes: int) -> None:
        events.append(Allocate(number, num_bytes) if num_bytes > 0 else Free(number))

    Tracer(workload, capability, record).run([(num_examples, length)] * _NUM_WINDOWS)
    allocator = CachingAllocator(expandable_segments=True)
    replay(events, allocator)
    return allocator.peak_reserved_bytes + workspace_bytes(capability)
