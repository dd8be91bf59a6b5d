"""Trains one detector with every loss of the paper and several seeds, and compares them; see the README."""

from loss_ablation.ablation import main

if __name__ == "__main__":
    main()
