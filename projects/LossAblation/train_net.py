"""The plugin's train_net.py, with the data sets of this project."""

from loss_ablation import add_config

from retina_plugin.engine.train_net import main

if __name__ == "__main__":
    main(add_config=add_config)
