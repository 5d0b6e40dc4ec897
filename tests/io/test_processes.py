"""What several processes share and bring together, in three processes."""

import os

import pytest
import torch

from tests import tiny
from updp.errors import ProcessLostError, UserError
from updp.io import processes
from updp.io.figures import Figures
from updp.io.files import write_text

COUNT = 3


def join() -> tuple[int, int]:
    processes.join(cuda=False)
    return processes.rank(), processes.count()


def bring_together() -> None:
    rank, count = join()
    assert (rank, count) == (int(os.environ["RANK"]), COUNT)
    assert processes.all_gather({"of": rank}) == [{"of": 0}, {"of": 1}, {"of": 2}]
    assert processes.broadcast(f"said by {rank}") == "said by 0"
    one, other = torch.full((2,), 1.0 + rank), torch.tensor([[10.0 * rank]], dtype=torch.float64)
    processes.all_reduce(one, other)
    assert (one.tolist(), other.tolist()) == ([6.0, 6.0], [[30.0]])
    parts = [torch.full((2, 2), 3.0 * rank), torch.tensor(rank - 1.0)]
    processes.average(parts)
    assert (parts[0].tolist(), parts[1].item()) == ([[3.0, 3.0], [3.0, 3.0]], 0.0)
    with processes.on_its_own():
        assert (processes.rank(), processes.count(), processes.all_gather(rank)) == (0, 1, [rank])
        assert list(processes.share("ab")) == [(0, "a"), (1, "b")]
    assert processes.is_first() is (rank == 0)


def share_out() -> None:
    rank, _ = join()
    mine = list(processes.share("abcdefg"))
    assert mine == [(n, c) for n, c in enumerate("abcdefg") if n % COUNT == rank]
    everything = sorted(tuple(pair) for own in processes.all_gather(mine) for pair in own)
    assert everything == list(enumerate("abcdefg"))
    assert list(processes.share("a")) == ([(0, "a")] if rank == 0 else [])


def differentiate() -> None:
    """The whole is (sum of squares)^2, whose gradient is 4 x_i times the sum of squares."""
    rank, _ = join()
    x = torch.tensor(1.0 + rank, dtype=torch.float64, requires_grad=True)
    total = processes.summed(x.square())
    (total.square() / COUNT).backward()  # each has a part of the whole
    assert total.item() == 14.0
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(4 * (1 + rank) * 14, rel=1e-14)


def write(folder: str) -> None:
    from pathlib import Path

    rank, _ = join()
    write_text(Path(folder) / "text", str(rank))
    Figures(Path(folder) / "figures").add(rank=rank)
    processes.barrier()
    assert (Path(folder) / "text").read_text() == "0"
    assert Figures(Path(folder) / "figures").rows() == [{"rank": 0}]


def lose_one() -> None:
    rank, _ = join()
    processes.barrier()
    if rank == 1:
        os._exit(0)
    with pytest.raises(ProcessLostError, match="start the same command again"):
        processes.all_gather(rank)
    os._exit(0)


@pytest.mark.parametrize("function", [bring_together, share_out, differentiate, lose_one])
def test_three_processes(function: object) -> None:
    tiny.together(COUNT, function)  # type: ignore[arg-type]


def test_only_the_first_writes(tmp_path: object) -> None:
    tiny.together(2, write, str(tmp_path))


def test_alone_nothing_is_shared() -> None:
    processes.join(cuda=False)
    tensor = torch.ones(2)
    processes.all_reduce(tensor)
    processes.average([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert (processes.rank(), processes.count(), processes.is_first()) == (0, 1, True)
    assert (processes.all_gather(5), processes.broadcast(5)) == ([5], 5)
    assert list(processes.share("ab")) == [(0, "a"), (1, "b")]


def meet_nobody() -> None:
    os.environ.update(RANK="x", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1")
    with pytest.raises(UserError, match="cannot be reached"):
        processes.join(cuda=False)


def test_a_launch_that_is_wrong_is_one_line() -> None:
    tiny.fresh(meet_nobody)
