import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from making import configuration

from pdp.tasks import build_task
from pdp.tasks.sampling import set_epoch


def test_two_processes_see_together_what_one_sees(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(__file__).parent
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join([str(here.parents[1]), str(here)])
    processes = [
        subprocess.Popen(
            [sys.executable, str(here / "two_processes.py"), str(tmp_path)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    task = build_task(configuration({"name": "digits", "limit": 41}))
    task.open_data()
    loader = task.train_loader(8, 1, "pad_crop_flip", 0)
    set_epoch(loader, 4, 2)
    alone = [batch["image"] for batch in loader]
    together = [torch.cat(halves) for halves in zip(first["train"], second["train"], strict=True)]
    assert len(alone) == 3
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))
    seen = torch.cat([*first["evaluation"], *second["evaluation"]])
    assert sorted(seen.tolist()) == list(range(41))
