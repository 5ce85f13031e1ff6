"""Lightning with automatic optimisation: `python lightning_automatic.py`."""

import lightning
import torch
from torch.utils.data import DataLoader

from small_model import BATCH, EPOCHS, LR, TRAIN, VALID, Step, batches, make


class Module(lightning.LightningModule):
    """Lightning calls backward and the optimizer; three hooks call the strategy."""

    def __init__(self, name):
        super().__init__()
        net, balance = make(name)
        self.run = Step(net, balance)

    def configure_optimizers(self):
        net, balance = self.run.net, self.run.balance
        optimizer = torch.optim.Adam(balance.groups(net.parameters(), net.encoders, LR), LR)
        balance.check_optimizer(optimizer)  # a UsageError names the parameters that would be trained twice
        return optimizer

    def training_step(self, batch, index):
        return self.run(**batch)["loss"]

    def on_before_optimizer_step(self, optimizer):
        self.run.balance.adjust(optimizer)

    def optimizer_step(self, *arguments, **more):
        super().optimizer_step(*arguments, **more)
        self.run.balance.step()

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
