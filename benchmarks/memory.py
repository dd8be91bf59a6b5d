"""How much memory one run of a step takes, over what was there before it.

On a GPU, torch counts what is allocated. On a CPU it is the resident memory, and only of a process that has done
nothing else: an allocator keeps what it once had, and a second run would find it there. Each measurement is therefore
made in a process of its own, forked from one that has imported everything and run nothing.
"""

import ctypes
import gc
import importlib
import multiprocessing
import re
from pathlib import Path

import torch

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
# "5" resets the largest resident size (Linux, Documentation/filesystems/proc).
_RESET = Path("/proc/self/clear_refs")


def peak_of_case(module, args, index, impl):
    """Peak of an implementation of a case, in bytes.

    Args:
        module: name of the benchmark's module, with ``cases(args)``.
        args: its arguments.
        index: of the case.
        impl: its name.

    Returns:
        int: bytes over what was resident before the step, or None where the system does not tell (it needs Linux).
    """
    if not _RESET.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    # Not the benchmark's module itself: as the program's main module, the process runs it again, with a warning.
    context.set_forkserver_preload(["benchmarks.detectors"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(sender, module, args, index, impl))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process that measures the memory of '{impl}' ended early; see above") from None
    finally:
        process.join()


def _send_peak(sender, module, args, index, impl):
    torch.set_num_threads(args.threads)
    case = importlib.import_module(module).cases(args)[index]
    # What is set up once for a process belongs to no step: compiled functions, thread pools, kernels.
    _run(case.miniature().step(impl))
    sender.send(peak_of_step(case.step(impl), torch.device("cpu")))


def peak_of_step(step, device):
    """Peak of one run in this process, in bytes over what was there before.

    Args:
        step: a ``Step``.
        device: the ``torch.device`` whose memory is meant.
    """
    gc.collect()
    if device.type == "cuda":
        step.prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    step.prepare()
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but still resident, would hide as much of the step
    _RESET.write_text("5")
    before, files_before = _resident("VmRSS"), _resident("RssFile")
    step.run()
    # Pages of libraries come when their code first runs, and go when the system wants them for others.
    files = max(0, _resident("RssFile") - files_before)
    return _resident("VmHWM") - before - files


def available_bytes(device):
    """Bytes that can still be allocated; infinite where the system does not tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + kept
    return _kilobytes(_MEMINFO, "MemAvailable") if _MEMINFO.exists() else float("inf")


def shortage(scale, known, device):
    """Judge by smaller inputs whether an implementation fits into the memory that is left, with a tenth of it to spare.

    Args:
        scale: bytes of its inputs.
        known: (scale, peak) of a case that ran, or None.
        device: a ``torch.device``.

    Returns:
        What is lacking, or None.
    """
    if known is None or scale <= known[0]:
        return None
    needed, available = scale + known[1] * scale / known[0], available_bytes(device)
    if needed <= 0.9 * available:
        return None
    return f"needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are available"


def _run(step):
    step.prepare()
    step.run()


def _resident(name):
    return _kilobytes(_STATUS, name)


def _kilobytes(path, name):
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)[1])
