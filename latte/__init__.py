"""Latte, a latent diffusion transformer for video, on MindSpore: the steps from raw videos to a scored model."""

import os

__version__ = "0.1.0"

# What MindSpore 2.9 and the libraries below it read when they are loaded, so set before the first import of either.
# What the user has set stays.
ENVIRONMENT = {
    # MindSpore's messages need the Python implementation of protobuf, which it asks for too late where KFP or
    # TensorBoard were imported before it.
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
    # oneDNN's convolutions: on processors with AVX-512 only the unoptimised reference code takes MindSpore's layout, a
    # hundred times slower than what AVX2 has. Matrix products are no faster with AVX-512 either (benchmarks/models.py).
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    # Fused kernels run on OpenMP's threads, all others on MindSpore's. Those of OpenMP would otherwise wait for their
    # next kernel in a loop, on the cores that MindSpore's need.
    "OMP_WAIT_POLICY": "PASSIVE",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
