"""Pipelines of diffusers whose text encoder is a whole vision-language model, which judges."""

from gapbench.models import torchvision_shim

torchvision_shim.ensure()  # before transformers, which imports torchvision where it is installed
