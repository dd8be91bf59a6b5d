"""What the ranks of a job decide together."""

import torch
from detectron2.utils import comm
from torch import distributed as dist


def any_rank(flag: object) -> bool:
    """Whether the flag is true on any rank. Every rank must call this; it does not wait for a GPU.

    Args:
        flag: of this rank; anything that is true or false.

    Returns:
        The same on all ranks.
    """
    if comm.get_world_size() == 1:
        return bool(flag)
    votes = torch.tensor([int(bool(flag))])
    # The group through which Detectron2 itself sends metrics.
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=comm._get_global_gloo_group())
    return bool(votes.item())
