"""BAGEL (ByteDance-Seed): a mixture of transformers that draws by a flow and judges in text."""

from gapbench.models import torchvision_shim

torchvision_shim.ensure()  # before transformers, which imports torchvision where it is installed
