"""The project's trainer."""

from retina_plugin.engine import RetinaTrainer


class ForeignTrainer(RetinaTrainer):
    """Says that it trains."""

    def before_train(self) -> None:
        super().before_train()
        print("ForeignTrainer trains", flush=True)
