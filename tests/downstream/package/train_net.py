"""Trains with the project's keys and trainer."""

from foreign_project import ForeignTrainer, add_config

from retina_plugin.engine.train_net import main

if __name__ == "__main__":
    main(add_config=add_config, trainer=ForeignTrainer)
