"""The plugin's train_net.py with the key and the meta-architecture of this project."""

from pyramid_classifier import add_config

from retina_plugin.engine.train_net import main

if __name__ == "__main__":
    main(add_config=add_config)
