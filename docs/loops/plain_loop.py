"""A loop in plain torch, with mixed precision and loss scaling: `python plain_loop.py`."""

import torch

from small_model import EPOCHS, LR, TRAIN, VALID, batches, make


def train(name="cggm", half=None, scale=1024.0):
    """Trains with a strategy; half: torch.float16 or torch.bfloat16 for mixed precision."""
    net, balance = make(name)
    optimizer = torch.optim.Adam(balance.groups(net.parameters(), net.encoders, LR), LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=half is not None)
    for _ in range(EPOCHS):
        for inputs, labels in batches(TRAIN):
            optimizer.zero_grad()
            with torch.autocast("cpu", half, enabled=half is not None):
                balance.see(inputs)
                features = balance.modulate(net.encode(inputs), labels)
                loss = sum(balance.losses(net.fuse(features), labels))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            balance.adjust(optimizer)
            scaler.step(optimizer)
            scaler.update()
            balance.step()
        valid_loss = balance.finish_epoch(net, batches(VALID))
        print(f"validation loss {valid_loss:.4f}")
    return net, balance


if __name__ == "__main__":
    train()
