"""Many processes train as one."""

import json
import multiprocessing
import os
import signal
import socket
from functools import partial

import pytest
import torch

from diffvit.clip.small.task import ContrastiveTask
from diffvit.errors import DiffvitError
from diffvit.hub.libraries import library
from diffvit.training import environment, loop
from diffvit.training.run_dir import RunDir
from diffvit.training.task import load_data
from tests.training.small import small

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.test_processes"])  # once for both, with what a CLIP has its templates of:
library("open_clip")
CLIP = small(  # steps of 5, 5 and 1 images
    **{"objective": "contrastive", "shapes": {"train": 11}, "batch_size": 5, "joint_dim": 12},
    text={"embed_dim": 16, "depth": 1, "num_heads": 2, "context_length": 12},
    **{"augment": {"flip": True, "cutmix": 1.0}, "optimizer": {"lr": 1e-5}},
)
CLASSIFIER = small(  # the last step of an epoch has one image: none for the second process
    **{"shapes": {"train": 51}, "validation_size": 10, "epochs": 2, "batch_size": 20, "accumulate": 2, "ema": 0.9},
    **{"model": {"depth": 2}, "augment": {"flip": True, "crop": 2, "cutmix": 1.0}},
    optimizer={"name": "muon", "grad_clip": 1.0},
)
STOPPED = CLASSIFIER.model_copy(update={"batch_size": 4, "accumulate": 1, "epochs": 1})


def contrast(out):
    """Every step of an epoch of a CLIP: its loss, its gradients, and at the end the weights, from the first process."""
    fabric = environment.launch("cpu", "fp32")
    data, task = load_data(CLIP, lambda _: None), ContrastiveTask()
    trainer = loop.Trainer(fabric, CLIP, data, task.model(CLIP, data), task.objective(CLIP, data))
    found = {}
    for number, _ in enumerate(trainer.steps()):
        found[f"loss {number}"] = torch.tensor(trainer.position.sums["loss"])
        found |= {f"{name} {number}": each.grad.clone() for name, each in trainer.model.named_parameters()}
    found |= dict(trainer.model.state_dict())
    if fabric.global_rank == 0:
        torch.save(found, out)


class Signalled(loop.Trainer):
    """Its second process gets SIGTERM after two steps."""

    def running(self):
        if self.position.step == 2 and self.fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().running()


def in_each_process(folder, environ):
    """Train the CLIP, the classifier, it once more into a folder that is taken, and one that is stopped."""
    os.environ.update(environ)
    torch.set_num_threads(1)
    contrast(folder / "many.pt")
    errors = []
    for config, out in ((CLASSIFIER, "two"), (CLASSIFIER, "one"), (STOPPED, "stopped")):
        if config is STOPPED:
            loop._READ_EVERY["cpu"], loop._SHOWN_EVERY, loop.Trainer = 4, 0.0, Signalled
        try:
            loop.train(config, out=folder / out)
        except DiffvitError as error:
            errors.append([out, error.exit_code, str(error)])
    (folder / f"errors-{environ['RANK']}.json").write_text(json.dumps(errors))


def one_and_two(folder):
    """Write what one process and what two together compute; the errors that each of the two met."""
    contrast(folder / "one.pt")
    loop.train(CLASSIFIER, out=folder / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(2):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environ = os.environ | {name: str(value) for name, value in ranks.items()}
        running.append(FORKS.Process(target=in_each_process, args=(folder, environ), daemon=True))
        running[-1].start()
    for process in running:
        process.join(240)
    assert [process.exitcode for process in running] == [0, 0]
    return [json.loads((folder / f"errors-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_train_as_one(tmp_path):
    """One test, as it takes long to start them; what is compared is what each function's name says."""
    errors = one_and_two(tmp_path)
    a_clip_contrasts_the_whole_batch(tmp_path)
    a_classifier_has_the_same_losses(tmp_path)
    a_fault_of_the_first_and_a_signal_to_the_second_end_both(tmp_path, *errors)


def a_clip_contrasts_the_whole_batch(folder):
    one, many = (torch.load(folder / f"{name}.pt") for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(one[f"visual.patch_embed.proj.weight {step}"].abs().max() > 1e-3 for step in range(2))
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-4, atol=1e-5, msg=partial("{}: {}".format, name))


def a_classifier_has_the_same_losses(folder):
    one, two = (RunDir.open(folder / name) for name in ("one", "two"))
    assert two.environment["processes"] == 2
    for alone, shared in zip(one.metrics, two.metrics, strict=True):
        for key in ("train_loss", "val_loss", "gradient_norm"):
            assert shared[key] == pytest.approx(alone[key], rel=1e-4)
        for key in ("epoch", "step", "images_seen", "train_accuracy", "lr", "muon_lr"):
            assert shared[key] == pytest.approx(alone[key])
    assert two.result["test_loss"] == pytest.approx(one.result["test_loss"], rel=1e-4)


def a_fault_of_the_first_and_a_signal_to_the_second_end_both(folder, first, second):
    assert first == second
    (taken, code, why), (stopped, by_signal, _) = first
    assert (taken, code, stopped, by_signal) == ("one", 3, "stopped", 143)
    assert "already holds a run" in why
    assert [path.name for path in (folder / "stopped" / "checkpoints").iterdir()] == ["step-00000005"]
