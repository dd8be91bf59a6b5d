"""A project of somebody else, which is installed beside retina_plugin and uses its public names only."""

from setuptools import setup

setup(name="foreign_project", version="1.0", packages=["foreign_project"])
