"""A loop with accelerate: `python accelerate_loop.py`, or `accelerate launch accelerate_loop.py` with several processes.

The module that accelerate prepares runs from the encoders to the loss, because autocast and the gradients of
several processes belong to its forward pass.
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from small_model import BATCH, EPOCHS, LR, TRAIN, VALID, Step, batches, make


def train(name="cggm", accelerator=None):
    """Trains with a strategy."""
    accelerator = accelerator or Accelerator()
    net, balance = make(name, reduce=lambda sums: accelerator.reduce(sums.clone(), "sum"))
    optimizer = torch.optim.Adam(balance.groups(net.parameters(), net.encoders, LR), LR)
    step, optimizer, loader = accelerator.prepare(Step(net, balance), optimizer, DataLoader(TRAIN, BATCH))
    for _ in range(EPOCHS):
        step.train()
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward(step(**batch)["loss"])
            if accelerator.scaler is not None:  # with fp16
                accelerator.scaler.unscale_(optimizer.optimizer)
            balance.adjust(optimizer)
            optimizer.step()
            balance.step()
        share = VALID[accelerator.process_index :: accelerator.num_processes]
        valid_loss = balance.finish_epoch(net, batches(share))
        accelerator.print(f"validation loss {valid_loss:.4f}")
    return net, balance


if __name__ == "__main__":
    train()
