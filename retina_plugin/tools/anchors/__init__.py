"""Anchors of a configuration and the boxes of a data set: coverage, anchors that fit, images of what is assigned."""
