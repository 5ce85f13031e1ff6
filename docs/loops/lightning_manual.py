"""Lightning with manual optimisation: `python lightning_manual.py`."""

import lightning
import torch
from torch.utils.data import DataLoader

from small_model import BATCH, EPOCHS, LR, TRAIN, VALID, Step, batches, make


class Module(lightning.LightningModule):
    """The training step calls backward, the optimizer and the strategy."""

    automatic_optimization = False

    def __init__(self, name):
        super().__init__()
        net, balance = make(name)
        self.run = Step(net, balance)

    def configure_optimizers(self):
        net, balance = self.run.net, self.run.balance
        return torch.optim.Adam(balance.groups(net.parameters(), net.encoders, LR), LR)

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.run(**batch)["loss"])
        optimizer.step()
        self.run.balance.step()

    def on_before_optimizer_step(self, optimizer):
        # Lightning calls it when a gradient scaler has unscaled the gradients.
        self.run.balance.adjust(optimizer)

    def on_train_epoch_end(self):
        self.print(f"validation loss {self.run.balance.finish_epoch(self.run.net, batches(VALID)):.4f}")


def train(name="cggm", **more):
    """Trains with a strategy; more: arguments of `lightning.Trainer`."""
    module = Module(name)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=EPOCHS, **quiet, **more)
    trainer.fit(module, DataLoader(TRAIN, BATCH))
    return module.run.net, module.run.balance


if __name__ == "__main__":
    train()
