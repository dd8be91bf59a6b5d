"""Draws which examples the focal loss of a trained detector comes from; see the README."""

from loss_distribution.analysis import main

if __name__ == "__main__":
    main()
