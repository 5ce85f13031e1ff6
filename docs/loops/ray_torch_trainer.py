"""A Ray TorchTrainer of a person's own with two workers: `python ray_torch_trainer.py`.

Ray wraps the step from the encoders to the loss in DistributedDataParallel. Gradients are modulated inside of it, before the
all-reduce, by coefficients of the global batch: `reduce` sums over the workers what they are made of.
"""

import sys
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from small_model import BATCH, EPOCHS, LR, TRAIN, VALID, Step, batches, make


def reduce(sums):
    """The sum of a vector over the workers; its argument stays as it is."""
    total = sums.clone()
    dist.all_reduce(total)
    return total


def loop(config):
    """What every worker runs."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    net, balance = make(config["name"], reduce=reduce)
    step = ray.train.torch.prepare_model(Step(net, balance))
    optimizer = torch.optim.Adam(balance.groups(net.parameters(), net.encoders, LR), LR)
    half = config["half"]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for epoch in range(EPOCHS):
        # The same global batches for any number of workers.
        for inputs, labels in batches(TRAIN[rank::workers], BATCH // workers):
            optimizer.zero_grad()
            with torch.autocast("cpu", half, enabled=half is not None):
                loss = step(labels=labels, **inputs)["loss"]
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            balance.adjust(optimizer)
            scaler.step(optimizer)
            scaler.update()
            balance.step()
        valid_loss = balance.finish_epoch(net, batches(VALID[rank::workers]))
        ray.train.report({"epoch": epoch, "validation loss": valid_loss})
        if rank == 0:
            print(f"validation loss {valid_loss:.4f}")
    if rank == 0 and config["out"]:
        torch.save(net.state_dict(), config["out"])


def train(name="cggm", half=None, out=None, workers=2):
    """Trains with a strategy; out: file for the weights."""
    trainer = ray.train.torch.TorchTrainer(
        loop,
        train_loop_config={"name": name, "half": half, "out": out},
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
    )
    return trainer.fit()


if __name__ == "__main__":
    # The workers import small_model.py from this folder.
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path])}})
    train()
