"""A PyTorch that does not load, as a CUDA build without its libraries, and that tells who tried."""

import os
import sys
from pathlib import Path

with Path(os.environ["TORCH_IMPORTS"]).open("a", encoding="utf-8") as _file:
    _file.write(" ".join(sys.argv) + "\n")
raise OSError("libcudnn.so.9: cannot open shared object file: No such file or directory")
