"""Many processes train as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffvit.config import to_yaml
from diffvit.training.loop import train
from tests.training.small import small

SCRIPT = """
import json, sys
from pathlib import Path
from diffvit.config import resolve
from diffvit.errors import DiffvitError
from diffvit.training.loop import train
file, *outs = sys.argv[1:]
for out in outs:
    try:
        train(resolve(Path(file)), out=out)
    except DiffvitError as error:
        print(json.dumps([error.exit_code, str(error)]))
"""


# Every step of an epoch of a CLIP: its loss, its gradients, and at the end the weights, from the first process.
CONTRAST = """
import sys
from pathlib import Path
import torch
from diffvit.clip.small.task import ContrastiveTask
from diffvit.config import ClipConfig, resolve
from diffvit.training import processes
from diffvit.training.loop import Trainer
from diffvit.training.task import load_data
file, out = sys.argv[1:]
torch.set_num_threads(1)
fabric = processes.launch("cpu", "fp32")
config = resolve(Path(file), {}, kind=ClipConfig)
data, task = load_data(config, print), ContrastiveTask()
trainer = Trainer(fabric, config, data, task.model(config, data), task.objective(config, data))
found = {}
for number, _ in enumerate(trainer.steps()):
    found[f"loss {number}"] = torch.tensor(trainer.position.sums["loss"])
    found |= {f"{name} {number}": p.grad.clone() for name, p in trainer.model.named_parameters()}
found |= dict(trainer.model.state_dict())
if fabric.global_rank == 0:
    torch.save(found, out)
"""


def test_a_clip_contrasts_the_whole_batch_however_many_processes_share_it(tmp_path: Path):
    settings = small(
        **{"objective": "contrastive", "shapes": {"train": 11}, "batch_size": 5, "joint_dim": 12},
        text={"embed_dim": 16, "depth": 1, "num_heads": 2, "context_length": 12},
        **{"augment": {"flip": True, "cutmix": 1.0}, "optimizer": {"lr": 1e-5}},
    )
    (tmp_path / "clip.yaml").write_text(to_yaml(settings))  # steps of 5, 5 and 1 images
    for processes, name in ((1, "one"), (2, "many")):
        together([str(tmp_path / "clip.yaml"), str(tmp_path / name)], processes, CONTRAST)
    one, many = (torch.load(tmp_path / name) for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(one[f"visual.patch_embed.proj.weight {step}"].abs().max() > 1e-3 for step in range(2))
    for name, value in one.items():
        torch.testing.assert_close(
            many[name], value, rtol=1e-4, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}"
        )


def config():
    """The last step of an epoch has one image: none for the second process."""
    return small(
        **{"shapes": {"train": 51}, "validation_size": 10, "epochs": 2, "batch_size": 20, "accumulate": 2, "ema": 0.9},
        **{"model": {"depth": 2}, "augment": {"flip": True, "crop": 2, "cutmix": 1.0}},
        optimizer={"name": "muon", "grad_clip": 1.0},
    )


def together(arguments: list[str], count: int = 2, script: str = SCRIPT) -> list[str]:
    """Run the script in processes that know of each other; returns what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(count):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        environ = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environ |= {name: str(value) for name, value in ranks.items()}
        command = [sys.executable, "-c", script, *arguments]
        running.append(
            subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    ended = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0] * count, "\n".join(error for _, error in ended)
    return [output for output, _ in ended]


def test_two_processes_give_the_losses_of_one(tmp_path: Path):
    one = train(config(), out=tmp_path / "one")
    (tmp_path / "config.yaml").write_text(to_yaml(config()))
    taken = str(one.path)
    outputs = together([str(tmp_path / "config.yaml"), str(tmp_path / "two"), taken])
    # The second folder is taken: both processes hear it from the first, and none is left waiting.
    assert [json.loads(output)[0] for output in outputs] == [3, 3]
    assert all("already holds a run" in output for output in outputs)
    two = type(one).open(tmp_path / "two")
    assert two.environment["processes"] == 2
    for alone, shared in zip(one.metrics, two.metrics, strict=True):
        for key in ("train_loss", "val_loss", "gradient_norm"):
            assert shared[key] == pytest.approx(alone[key], rel=1e-4)
        for key in ("epoch", "step", "images_seen", "train_accuracy", "lr", "muon_lr"):
            assert shared[key] == pytest.approx(alone[key])
    assert two.result["test_loss"] == pytest.approx(one.result["test_loss"], rel=1e-4)


STOPPED = """
import os, signal, sys
from pathlib import Path
from diffvit.config import resolve
from diffvit.errors import Interrupted
from diffvit.training import loop

loop._READ_EVERY["cpu"] = 4
loop._SHOWN_EVERY = 0.0

class Signalling(loop.Trainer):
    def running(self):
        if self.position.step == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().running()

loop.Trainer = Signalling
try:
    loop.train(resolve(Path(sys.argv[1])), out=sys.argv[2])
except Interrupted as error:
    print(error.exit_code, error)
"""


def test_a_signal_to_one_process_stops_both_at_the_next_read(tmp_path: Path):
    changed = config().model_copy(update={"batch_size": 4, "accumulate": 1, "epochs": 1})
    (tmp_path / "config.yaml").write_text(to_yaml(changed))
    first, second = together([str(tmp_path / "config.yaml"), str(tmp_path / "run")], script=STOPPED)
    assert first.startswith("143 ")
    assert first == second
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]
