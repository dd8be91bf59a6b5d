"""What the processes of a job decide together."""

import torch
from detectron2.utils import comm
from torch import distributed as dist


def any_process(flag):
    """Whether the flag is set in any process. All of them must call this; no GPU is waited for.

    Args:
        flag: of this process; anything that is true or false.

    Returns:
        bool: the same in all processes.
    """
    if comm.get_world_size() == 1:
        return bool(flag)
    votes = torch.tensor([int(bool(flag))])
    # The group that Detectron2 itself sends metrics through.
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=comm._get_global_gloo_group())
    return bool(votes.item())
