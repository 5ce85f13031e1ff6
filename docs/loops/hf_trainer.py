"""The Trainer of transformers: `python hf_trainer.py`.

The model is the step from the encoders to the loss. A callback calls the strategy. The Trainer would clip the gradients of
all parameters of its model, those of the guides among them, so clipping is off.
"""

import tempfile

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from small_model import BATCH, EPOCHS, LR, TRAIN, VALID, Step, batches, make


class Balance(TrainerCallback):
    """The calls of a strategy between those of the Trainer."""

    def __init__(self, net, balance):
        self.net, self.balance = net, balance

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **more):
        if getattr(optimizer, "scaler", None) is not None:  # with fp16
            optimizer.scaler.unscale_(optimizer.optimizer)
        self.balance.adjust(optimizer)

    def on_optimizer_step(self, args, state, control, **more):
        self.balance.step()

    def on_epoch_end(self, args, state, control, **more):
        print(f"validation loss {self.balance.finish_epoch(self.net, batches(VALID)):.4f}")


def trainer(name="cggm", **more):
    """Returns a Trainer and what it trains."""
    net, balance = make(name)
    optimizer = torch.optim.Adam(balance.groups(net.parameters(), net.encoders, LR), LR)
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        use_cpu=True,
        seed=1,
        report_to=[],
        save_strategy="no",
        **more,
    )
    callbacks = [Balance(net, balance)]
    loop = Trainer(
        Step(net, balance), arguments, train_dataset=TRAIN, optimizers=(optimizer, None), callbacks=callbacks
    )
    return loop, net, balance


if __name__ == "__main__":
    trainer()[0].train()
